// SPDX-License-Identifier: BSD-3-Clause
// NumericsMonitor: whose product it is, and the sums of each. What is taken of a product: sample.cpp;
// what follows from that: measure.cpp. Samples of a GPU wait there until the watching ends.
#include <torch/nn/module.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "device/parallel.h"
#include "gemm/observer.h"
#include "moe8/numerics.h"
#include "numerics/bounds.h"
#include "numerics/measure.h"
#include "numerics/report.h"
#include "numerics/sample.h"
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
      : options_(std::move(options)), sampler_(sampling_of(options_)) {
    for (const auto& parameter : model.named_parameters()) add(parameter.key(), parameter.value());
    start();
  }
  ~Watcher() override { stop(); }

  void observe(const GemmProblem& problem, const at::Tensor& result) override;
  void end();
  /// What was taken is on its way to the host.
  void bring_to_host();
  /// Of what is on the host or on its way there. Waits for the device.
  NumericsReport report();

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

  /// A product of a GPU that was not measured yet.
  struct Taken {
    std::vector<Weight*> weights;
    ProductSample sample;
  };

  void add(const std::string& fqn, const at::Tensor& tensor);
  void measure(const std::vector<Weight*>& weights, const ProductSample& sample);
  void wait_for_copies();
  /// The weight of a product; all of them when it was made of several (cat, stack).
  std::vector<Weight*> find(const WeightId& id);

  const NumericsOptions options_;
  Sampler sampler_;
  std::vector<Weight> weights_;
  std::unordered_map<const void*, size_t> by_impl_;
  std::unordered_map<uint64_t, size_t> by_tag_;
  std::mutex mutex_;  // guards the following, and the sums
  std::list<Taken> on_device_, on_host_;
  std::list<HostCopy> copies_;  // what on_host_ lies in, as long as this lives
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
  std::vector<Weight*> weights = find(problem.weight);
  if (weights.empty() || !problem.left.has_source() || !problem.right.has_source()) return;
  ProductSample sample = sampler_.take(problem, result);
  if (!sample.tensors().empty()) {
    const std::lock_guard lock(mutex_);
    on_device_.push_back({std::move(weights), std::move(sample)});
    return;
  }
  measure(weights, sample);
}

void NumericsMonitor::Watcher::measure(const std::vector<Weight*>& weights,
                                       const ProductSample& sample) {
  const GemmSums sums = sums_of(sample);
  const std::lock_guard lock(mutex_);
  for (Weight* weight : weights) {
    Seen& seen = weight->products[sample.gemm];
    seen.formats = sample.formats;
    seen.sums.add(sums);
  }
}

void NumericsMonitor::Watcher::bring_to_host() {
  sampler_.release();
  const std::lock_guard lock(mutex_);
  std::vector<at::Tensor*> tensors;
  for (Taken& taken : on_device_) {
    for (at::Tensor* x : taken.sample.tensors()) tensors.push_back(x);
  }
  if (tensors.empty()) return;
  copies_.emplace_back(tensors);
  on_host_.splice(on_host_.end(), on_device_);
}

void NumericsMonitor::Watcher::end() {
  stop();
  bring_to_host();
}

void NumericsMonitor::Watcher::wait_for_copies() {
  std::vector<const HostCopy*> copies;
  {
    const std::lock_guard lock(mutex_);
    for (const HostCopy& copy : copies_) copies.push_back(&copy);
  }
  for (const HostCopy* copy : copies) copy->wait();
}

NumericsReport NumericsMonitor::Watcher::report() {
  std::list<Taken> taken;
  {
    const std::lock_guard lock(mutex_);
    taken.swap(on_host_);
  }
  wait_for_copies();
  for (const Taken& one : taken) measure(one.weights, one.sample);
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
    : watcher_(std::make_shared<Watcher>(model, std::move(options))) {}

NumericsMonitor::~NumericsMonitor() = default;

void NumericsMonitor::stop() {
  watcher_->end();
}

NumericsReport NumericsMonitor::report() const {
  watcher_->bring_to_host();
  return watcher_->report();
}

std::future<NumericsReport> NumericsMonitor::report_later() const {
  watcher_->bring_to_host();
  return std::async(std::launch::async, [watcher = watcher_]() mutable {
    stay_on_this_thread();
    const at::NoGradGuard no_grad;
    NumericsReport report = watcher->report();
    watcher.reset();  // the last one to hold it is not this thread
    return report;
  });
}

}  // namespace moe8
