// SPDX-License-Identifier: BSD-3-Clause
// Which features of a head rotate together. LibTorch is not needed here.
#pragma once

#include <string_view>

namespace moe8 {

/// Pair j of a head of D features: features 2 j and 2 j + 1 (as torchtitan and Meta's Llama order
/// them), or j and j + D/2 (as Hugging Face's models do).
enum class RotaryPairs { NEIGHBOURS, HALVES };

/// "neighbours", "halves".
std::string_view to_string(RotaryPairs value);

}  // namespace moe8
