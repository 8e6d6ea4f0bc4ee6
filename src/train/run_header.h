// SPDX-License-Identifier: BSD-3-Clause
// What is said of a run before its first step.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "moe8/quantize_model.h"
#include "train/config/run_config.h"

namespace moe8 {

/// "the CPU, 2 threads" or "NVIDIA H200".
std::string device_text(const c10::Device& device);

/// Lines for people: size of the model, steps, device, what experts and linear layers compute in,
/// folder. `conversion` has no rows when nothing was to be converted.
std::vector<std::string> header_of(const RunConfig& config, const ConversionReport& conversion,
                                   const c10::Device& device);

}  // namespace moe8
