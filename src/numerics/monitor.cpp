// SPDX-License-Identifier: BSD-3-Clause
// NumericsMonitor: whose product it is, and the sums of each. Measuring a product: measure.cpp.
#include <torch/nn/module.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "gemm/observer.h"
#include "moe8/numerics.h"
#include "numerics/bounds.h"
#include "numerics/measure.h"
#include "numerics/report.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

constexpr double kGoldenRatio = 0.6180339887498949;  // its multiples fill [0, 1) evenly

Sampling sampling_of(const NumericsOptions& o) {
  const auto positive = [](const char* name, int64_t value) {
    MOE8_CHECK(value >= 1, "NumericsMonitor", std::string("options.") + name,
               "expected at least 1, got ", value);
  };
  positive("sampled", o.sampled);
  positive("results", o.results);
  positive("experts", o.experts);
  const double turns = static_cast<double>(o.seed % (1 << 20)) * kGoldenRatio;
  return {o.sampled, o.results, o.experts, turns - std::floor(turns)};
}

std::string module_of(const std::string& fqn) {
  const size_t dot = fqn.rfind('.');
  return dot == std::string::npos ? "" : fqn.substr(0, dot);
}

}  // namespace

class NumericsMonitor::Watcher final : public GemmObserver {
 public:
  Watcher(const torch::nn::Module& model, NumericsOptions options)
      : options_(std::move(options)), sampling_(sampling_of(options_)) {
    for (const auto& parameter : model.named_parameters()) add(parameter.key(), parameter.value());
    start();
  }
  ~Watcher() override { stop(); }

  void observe(const GemmProblem& problem, const at::Tensor& result) override;
  void end() { stop(); }
  NumericsReport report() const;

 private:
  struct Seen {
    GemmFormats formats;
    GemmSums sums;
  };
  struct Weight {
    std::string fqn;
    at::Tensor tensor;  // keeps the address, by which it is known, from being used again
    bool converted;
    std::map<Gemm, Seen> products{};
  };

  void add(const std::string& fqn, const at::Tensor& tensor);
  /// The weight of a product; all of them when it was made of several (cat, stack).
  std::vector<Weight*> find(const WeightId& id);

  const NumericsOptions options_;
  const Sampling sampling_;
  std::vector<Weight> weights_;
  std::unordered_map<const void*, size_t> by_impl_;
  std::unordered_map<uint64_t, size_t> by_tag_;
  mutable std::mutex mutex_;  // guards the sums
};

void NumericsMonitor::Watcher::add(const std::string& fqn, const at::Tensor& tensor) {
  const void* impl = tensor.unsafeGetTensorImpl();
  if (!by_impl_.try_emplace(impl, weights_.size()).second) return;  // tied: the first name
  const std::optional<Tagged> tagged = find_tag(tensor);
  if (tagged) by_tag_.try_emplace(tagged->id(), weights_.size());
  weights_.push_back({fqn, tensor, tagged.has_value()});
}

std::vector<NumericsMonitor::Watcher::Weight*> NumericsMonitor::Watcher::find(const WeightId& id) {
  if (const auto same = by_impl_.find(id.impl); same != by_impl_.end()) {
    return {&weights_[same->second]};
  }
  std::vector<Weight*> sources;
  for (const uint64_t tag : id.tags) {
    if (const auto source = by_tag_.find(tag); source != by_tag_.end()) {
      sources.push_back(&weights_[source->second]);
    }
  }
  return sources;
}

void NumericsMonitor::Watcher::observe(const GemmProblem& problem, const at::Tensor& result) {
  const std::vector<Weight*> weights = find(problem.weight);
  if (weights.empty() || !problem.left.has_source() || !problem.right.has_source()) return;
  const GemmSums sums = measure(problem, result, sampling_);
  const std::lock_guard lock(mutex_);
  for (Weight* weight : weights) {
    Seen& seen = weight->products[problem.gemm];
    seen.formats = problem.formats;
    seen.sums.add(sums);
  }
}

NumericsReport NumericsMonitor::Watcher::report() const {
  NumericsReport report;
  const std::lock_guard lock(mutex_);
  for (const Weight& weight : weights_) {
    if (!weight.converted && weight.products.empty()) continue;
    WeightNumerics& row = report.weights.emplace_back(WeightNumerics{weight.fqn, {}});
    for (const auto& [gemm, seen] : weight.products) {
      row.products.push_back(product_numerics(gemm, seen.formats, seen.sums));
      const std::string module = module_of(weight.fqn);
      const bool told = !report.experts.empty() && report.experts.back().fqn == module;
      if (gemm != Gemm::OUT || seen.sums.tokens.empty() || told) continue;
      report.experts.push_back({module, seen.sums.tokens});
    }
  }
  report.warnings = warnings_of(report, options_.bounds);
  return report;
}

NumericsMonitor::NumericsMonitor(const torch::nn::Module& model, NumericsOptions options)
    : watcher_(std::make_unique<Watcher>(model, std::move(options))) {}

NumericsMonitor::~NumericsMonitor() = default;

void NumericsMonitor::stop() {
  watcher_->end();
}

NumericsReport NumericsMonitor::report() const {
  return watcher_->report();
}

}  // namespace moe8
