// SPDX-License-Identifier: BSD-3-Clause
// The learning rate of each step.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moe8 {

double learning_rate(const OptimizerConfig& config, int64_t steps, int64_t step) {
  if (step < config.warmup_steps) {
    return config.learning_rate * static_cast<double>(step) /
           static_cast<double>(config.warmup_steps);
  }
  const auto falling = static_cast<double>(std::max<int64_t>(1, steps - config.warmup_steps));
  const double done = static_cast<double>(step - config.warmup_steps) / falling;  // 0 to 1
  const double span = config.learning_rate - config.min_learning_rate;
  return config.min_learning_rate +
         span * (1 + std::cos(std::numbers::pi * std::min(done, 1.0))) / 2;
}

}  // namespace moe8
