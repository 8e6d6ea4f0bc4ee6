// SPDX-License-Identifier: BSD-3-Clause
// How fast a run was, from its steps: the same statistic wherever a speed is shown.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "train/store/metrics.h"

namespace moe8 {

/// Of the rates of all steps.
struct Rate {
  double median = 0;
  double spread = 1;  // the 90th of a hundred over the 10th: 1.05 where nothing disturbs
  size_t steps = 0;
};

struct Speed {
  Rate wall;                // tokens a second
  std::optional<Rate> cpu;  // tokens a second of CPU time, of all threads; nothing on a GPU, which
                            // computes while no CPU does, and in runs of older versions
};

/// From two spreads above kMaxSpread, or less than kMinTimedSteps steps, no ratio of speeds is
/// made: it would tell of what else the machine did.
inline constexpr double kMaxSpread = 1.5;
inline constexpr size_t kMinTimedSteps = 10;

Speed speed_of(const std::vector<StepMetrics>& steps);

/// How many times as fast as `first`; nothing where either is too uneven or too short to say.
std::optional<double> ratio(const Rate& rate, const Rate& first);

/// Why ratio() gives nothing: "its rates spread by 2.3 x". Empty where it gives something.
std::string no_ratio_because(const Rate& rate);

}  // namespace moe8
