// SPDX-License-Identifier: BSD-3-Clause
// The progress line of a run.
#include "train/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ostream>

#include "base/log.h"

namespace moe8 {
namespace {

constexpr std::chrono::milliseconds kRewrite{100};
constexpr std::chrono::seconds kNewLine{10};

}  // namespace

std::string duration_text(double seconds) {
  const auto total = static_cast<int64_t>(std::lround(std::max(0.0, seconds)));
  char text[64];
  if (total < 60) {
    std::snprintf(text, sizeof text, "%ds", static_cast<int>(total));
  } else if (total < 3600) {
    std::snprintf(text, sizeof text, "%dm %02ds", static_cast<int>(total / 60),
                  static_cast<int>(total % 60));
  } else {
    std::snprintf(text, sizeof text, "%lldh %02dm", static_cast<long long>(total / 3600),
                  static_cast<int>(total % 3600 / 60));
  }
  return text;
}

Progress::Progress(std::ostream* out, Kind kind, std::string label, int64_t steps, int64_t done)
    : out_(out), kind_(kind), label_(std::move(label)), steps_(steps), done_(done) {}

std::string Progress::line_of(const StepMetrics& m) const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  const double left =
      elapsed / static_cast<double>(m.step - done_) * static_cast<double>(steps_ - m.step);
  char text[256];
  std::snprintf(text, sizeof text,
                "%s  step %lld/%lld  loss %.4f  lr %.2e  grad norm %.2f  %.0f tokens/s  %s %s",
                label_.c_str(), static_cast<long long>(m.step), static_cast<long long>(steps_),
                m.loss, m.lr, m.grad_norm, m.tokens_per_s, m.step == steps_ ? "took" : "ETA",
                duration_text(m.step == steps_ ? elapsed : left).c_str());
  std::string line = text;
  if (m.validation_loss) {
    std::snprintf(text, sizeof text, "  validation %.4f", *m.validation_loss);
    line += text;
  }
  return line;
}

void Progress::show(const StepMetrics& metrics) {
  if (!out_) return;
  const bool last = metrics.step == steps_;
  const auto pause =
      kind_ == Kind::TERMINAL ? Clock::duration(kRewrite) : Clock::duration(kNewLine);
  if (!last && Clock::now() - shown_ < pause) return;
  shown_ = Clock::now();
  std::string line = line_of(metrics);
  if (kind_ == Kind::LINES) {
    *out_ << line << std::endl;
    return;
  }
  const size_t length = line.size();
  line.resize(std::max(width_, length), ' ');  // covers what stood there before
  width_ = length;
  *out_ << '\r' << line << std::flush;
}

void Progress::say(const std::string& line) {
  finish();
  if (out_) *out_ << line << std::endl;
}

void Progress::warn(const std::vector<std::string>& warnings) {
  if (warnings.empty()) return;
  finish();
  for (const std::string& warning : warnings) log_warning(warning);
}

void Progress::finish() {
  if (out_ && kind_ == Kind::TERMINAL && width_ > 0) *out_ << std::endl;
  width_ = 0;
}

}  // namespace moe8
