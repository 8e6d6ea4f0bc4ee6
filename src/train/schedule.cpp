// SPDX-License-Identifier: BSD-3-Clause
// The learning rate of each step.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moe8 {
namespace {

// How far step is on the way from `begin`, which is 0, to the last step, which is 1.
double way_from(int64_t begin, int64_t steps, int64_t step) {
  const auto length = static_cast<double>(std::max<int64_t>(1, steps - begin));
  return std::clamp(static_cast<double>(step - begin) / length, 0.0, 1.0);
}

// Twice the share of the way from the minimum to the full rate, after the warm-up. Doubling and
// halving are exact.
double twice_share(const OptimizerConfig& c, int64_t steps, int64_t step) {
  switch (c.schedule) {
    case Schedule::COSINE:
      return 1 + std::cos(std::numbers::pi * way_from(c.warmup_steps, steps, step));
    case Schedule::LINEAR:
      return 2 - 2 * way_from(c.warmup_steps, steps, step);
    case Schedule::CONSTANT:
      return 2;
    case Schedule::WSD:
      return 2 - 2 * way_from(std::max(c.warmup_steps, steps - c.decay_steps), steps, step);
  }
  return 2;
}

}  // namespace

double learning_rate(const OptimizerConfig& config, int64_t steps, int64_t step) {
  if (step < config.warmup_steps) {
    return config.learning_rate * static_cast<double>(step) /
           static_cast<double>(config.warmup_steps);
  }
  const double span = config.learning_rate - config.min_learning_rate;
  return config.min_learning_rate + span * twice_share(config, steps, step) / 2;
}

}  // namespace moe8
