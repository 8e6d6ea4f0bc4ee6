// SPDX-License-Identifier: BSD-3-Clause
#include "train/health.h"

#include <chrono>
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
  if (!is_due(step)) return;
  monitor_ = std::make_unique<NumericsMonitor>(
      model_, NumericsOptions{.seed = static_cast<uint64_t>(step)});
}

void Health::stop() {
  if (monitor_) monitor_->stop();
}

void Health::finish(const std::vector<ExpertTokens>& experts) {
  starved_.add(experts);
  if (!monitor_) return;
  // All of it on a thread of its own, beside the steps that follow.
  const auto complete = [step = step_, experts,
                         starved = starved_.take()](std::future<NumericsReport> report) {
    Look look{step, report.get(), {}};
    look.report.experts = experts;
    look.report.warnings = warnings_of(look.report, default_numerics_bounds());
    look.report.warnings.insert(look.report.warnings.end(), starved.begin(), starved.end());
    look.json = look.report.to_json();
    return look;
  };
  std::future<NumericsReport> report = monitor_->report_later();
  pending_.emplace(
      Pending{std::move(monitor_), std::async(std::launch::async, complete, std::move(report))});
}

std::optional<Look> Health::take(bool waits) {
  if (!pending_) return std::nullopt;
  if (!waits && pending_->look.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    return std::nullopt;
  }
  Look look = pending_->look.get();
  pending_.reset();
  return look;
}

std::vector<std::string> Health::fresh_warnings(const Look& look) {
  std::vector<std::string> texts;
  for (const NumericsWarning& warning : alarm_.fresh(look.report)) {
    texts.push_back("[numerics] step " + std::to_string(look.step) + ": " + warning.text());
  }
  return texts;
}

}  // namespace moe8
