// SPDX-License-Identifier: BSD-3-Clause
// Which parameters of a run are trained, and how fast each.
#pragma once

#include <string>
#include <vector>

#include "moe8/transformer_config.h"
#include "train/config/run_config.h"

namespace moe8 {

struct TrainedParameter {
  ParameterShape parameter;
  double rate = 1;  // factor on the learning rate

  bool operator==(const TrainedParameter&) const = default;
};

/// With lora its adapters, else all that optimizer.frozen does not name.
/// @throws c10::Error when a key of frozen, rates or targets names nothing, two keys of rates name one
///         parameter, or nothing is left to train.
std::vector<TrainedParameter> trained_parameters(const RunConfig& config);

}  // namespace moe8
