// SPDX-License-Identifier: BSD-3-Clause
// Which parameters Muon steps, and which decay.
#pragma once

#include <cstdint>
#include <string_view>

#include "moe8/optimizer.h"
#include "train/config/run_config.h"

namespace moe8 {

/// Matrices decay; norms and other vectors do not, nor the stacked biases of experts.
bool decays(std::string_view name, int64_t dimensions);

/// With OptimizerKind::MUON hidden matrices and stacked experts are stepped by Muon: not embeddings
/// and the output projection, whose rows belong to tokens, nor routers, whose rows are experts'.
UpdateRule update_rule(OptimizerKind kind, std::string_view name, int64_t dimensions);

}  // namespace moe8
