// SPDX-License-Identifier: BSD-3-Clause
// What turns a router's logits into scores. LibTorch is not needed here.
#pragma once

#include <string_view>

namespace moe8 {

/// Over all experts, or each expert on its own.
enum class ScoreFunction { SOFTMAX, SIGMOID };

/// "softmax" or "sigmoid".
std::string_view to_string(ScoreFunction value);
/// The inverse of to_string. @throws c10::Error listing the valid names.
ScoreFunction parse_score_function(std::string_view text);

}  // namespace moe8
