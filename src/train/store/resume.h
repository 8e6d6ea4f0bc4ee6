// SPDX-License-Identifier: BSD-3-Clause
// Whether a run may go on where another one stopped.
#pragma once

#include <string>
#include <vector>

#include "train/config/run_config.h"
#include "train/store/checkpoint.h"

namespace moe8 {

/// What differs and may, a line each: "training.steps = 200 (was 100)".
/// @param where  what holds the old config, for the error
/// @throws c10::Error naming the first key that must be the same, with both values.
std::vector<std::string> allowed_changes(const RunConfig& before, const RunConfig& now,
                                         const std::string& where);

/// "threads 1 (was 2), CPU AVX2 (was AVX512)"; empty when nothing differs.
std::string changes(const Environment& before, const Environment& now);

}  // namespace moe8
