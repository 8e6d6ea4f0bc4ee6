// SPDX-License-Identifier: BSD-3-Clause
#include "train/health.h"

#include <utility>

#include "numerics/bounds.h"

namespace moe8 {
namespace {

std::vector<ExpertTokens> tokens_of_experts(torch::nn::Module& model) {
  std::vector<ExpertTokens> all;
  for (const auto& module : model.named_modules()) {
    const auto* layer = module.value()->as<MoEImpl>();
    if (!layer) continue;
    const torch::Tensor counts = layer->tokens_per_expert.to(at::kCPU, at::kLong).contiguous();
    const auto* first = counts.const_data_ptr<int64_t>();
    all.push_back({module.key() + ".experts", {first, first + counts.numel()}});
  }
  return all;
}

}  // namespace

Health::Health(TransformerImpl& model, const NumericsConfig& config)
    : model_(model), config_(config) {}

void Health::start(int64_t step) {
  step_ = step;
  const bool due = config_.interval > 0 && (step == 1 || step % config_.interval == 0);
  if (due) monitor_.emplace(model_, NumericsOptions{.seed = static_cast<uint64_t>(step)});
}

void Health::stop() {
  if (monitor_) monitor_->stop();
}

void Health::finish() {
  if (!monitor_) return;
  report_ = monitor_->report();
  monitor_.reset();
  report_->experts = tokens_of_experts(model_);
  report_->warnings = warnings_of(*report_, default_numerics_bounds());
}

std::optional<NumericsReport> Health::take() {
  return std::exchange(report_, std::nullopt);
}

std::vector<std::string> Health::fresh_warnings(const NumericsReport& report) {
  std::vector<std::string> texts;
  for (const NumericsWarning& warning : alarm_.fresh(report)) {
    texts.push_back("[numerics] step " + std::to_string(step_) + ": " + warning.text());
  }
  return texts;
}

}  // namespace moe8
