// SPDX-License-Identifier: BSD-3-Clause
// The progress of one run, or of several that take turns, for people: one line that is rewritten on
// a terminal and fits it, else a line now and then.
#pragma once

#include <chrono>
#include <functional>
#include <iosfwd>
#include <set>
#include <string>
#include <vector>

#include "train/store/metrics.h"

namespace moe8 {

/// "1m 05s"
std::string duration_text(double seconds);

class Progress {
 public:
  enum class Kind { TERMINAL, LINES };

  /// @param out      nothing is printed when null. Kind::LINES: a line at most every ten seconds,
  ///                 and at the end.
  /// @param columns  how many characters a line of a terminal may have, asked before each; null:
  ///                 as many as it has
  Progress(std::ostream* out, Kind kind, std::function<int()> columns);

  /// Shows one more run. @return its number, for the functions below
  /// @param done  steps of earlier processes, for the time that is left
  size_t add(std::string label, int64_t steps, int64_t done = 0);

  void show(size_t run, const StepMetrics& metrics);
  /// A line of its own.
  void say(const std::string& line);
  /// The same, unless it was said before: what several runs have in common.
  void say_once(const std::string& line);
  /// Prints warnings of the library below the line.
  void warn(size_t run, const std::vector<std::string>& warnings);
  /// Leaves the last line standing.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  struct Run {
    std::string label;
    int64_t steps;
    int64_t done;
    StepMetrics last{};
  };
  bool all_ended() const;
  std::string time_text() const;
  std::string line_of(const Run& run, size_t columns) const;
  std::string line_of_all(size_t columns) const;

  std::ostream* out_;
  Kind kind_;
  std::function<int()> columns_;
  std::vector<Run> runs_;
  std::set<std::string> said_;
  size_t width_ = 0;  // of the line that stands on the terminal
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_{};
};

}  // namespace moe8
