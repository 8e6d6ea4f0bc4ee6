// SPDX-License-Identifier: BSD-3-Clause
// The progress of a run for people: one line that is rewritten on a terminal, else a line now and
// then.
#pragma once

#include <chrono>
#include <iosfwd>
#include <string>
#include <vector>

#include "train/store/metrics.h"

namespace moe8 {

/// "1m 05s"
std::string duration_text(double seconds);

class Progress {
 public:
  enum class Kind { TERMINAL, LINES };

  /// @param out  nothing is printed when null. Lines come at most every ten seconds, and at the
  /// end.
  /// @param done  steps of earlier processes, for the time that is left
  Progress(std::ostream* out, Kind kind, std::string label, int64_t steps, int64_t done = 0);

  void show(const StepMetrics& metrics);
  /// A line of its own.
  void say(const std::string& line);
  /// Prints warnings of the library below the line.
  void warn(const std::vector<std::string>& warnings);
  /// Leaves the last line standing.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::string line_of(const StepMetrics& metrics) const;

  std::ostream* out_;
  Kind kind_;
  std::string label_;
  int64_t steps_;
  int64_t done_;
  size_t width_ = 0;  // of the line that stands on the terminal
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_{};
};

}  // namespace moe8
