// SPDX-License-Identifier: BSD-3-Clause
#include "train/health.h"

#include <utility>

#include "numerics/bounds.h"

namespace moe8 {

Health::Health(TransformerImpl& model, const NumericsConfig& config, int64_t last_step)
    : model_(model), config_(config), last_step_(last_step) {}

bool Health::is_due(int64_t step) const {
  return config_.interval > 0 && (step == 1 || step == last_step_ || step % config_.interval == 0);
}

void Health::start(int64_t step) {
  step_ = step;
  if (is_due(step)) monitor_.emplace(model_, NumericsOptions{.seed = static_cast<uint64_t>(step)});
}

void Health::stop() {
  if (monitor_) monitor_->stop();
}

void Health::finish(const std::vector<ExpertTokens>& experts) {
  starved_.add(experts);
  if (!monitor_) return;
  report_ = monitor_->report();
  monitor_.reset();
  report_->experts = experts;
  report_->warnings = warnings_of(*report_, default_numerics_bounds());
  for (NumericsWarning& warning : starved_.take()) report_->warnings.push_back(std::move(warning));
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
