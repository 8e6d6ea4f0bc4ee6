// SPDX-License-Identifier: BSD-3-Clause
// The learning rate of each step: linear warm-up, then what OptimizerConfig::schedule says.
#pragma once

#include "train/config/run_config.h"

namespace moe8 {

/// @param step  1 to steps. Step warmup_steps has the full rate; the last step has the minimum, but
/// for a constant schedule.
double learning_rate(const OptimizerConfig& config, int64_t steps, int64_t step);

}  // namespace moe8
