// SPDX-License-Identifier: BSD-3-Clause
// What stands between the products of an expert. LibTorch is not needed here.
#pragma once

#include <string_view>

namespace moe8 {

/// Of a gate g and an up projection u, in float32.
enum class Activation {
  SWIGLU,          // silu(g) * u
  CLAMPED_SWIGLU,  // g' = min(g, limit), u' = clamp(u, -limit, limit):
                   // (u' + 1) * g' * sigmoid(alpha * g')     as in gpt-oss
};

/// "swiglu", "clamped_swiglu".
std::string_view to_string(Activation value);

}  // namespace moe8
