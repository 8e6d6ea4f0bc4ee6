// SPDX-License-Identifier: BSD-3-Clause
// Float8 scales: how a float32 scale follows from an amax (docs/numerics.md, section 2). The scale
// MULTIPLIES the source. Header-only; no Torch, no CUDA runtime.
#pragma once

#include <bit>

#include "formats/elem.h"

namespace moe8 {

inline constexpr double kFloat8AmaxFloor = 1e-12;  // keeps the scale of an all-zero set finite

/// float32(V / max(amax, 1e-12)), computed in double; with `pow2` rounded down to a power of two.
/// amax Inf gives 0 and NaN gives NaN: both make every dequantized value of the set NaN.
constexpr MOE8_HD float float8_scale(uint32_t amax_bits, ElemDtype elem, bool pow2) {
  if (amax_bits > 0x7F800000u) return std::bit_cast<float>(0x7FC00000u);
  const double amax = static_cast<double>(std::bit_cast<float>(amax_bits));
  const double floored = amax < kFloat8AmaxFloor ? kFloat8AmaxFloor : amax;
  const float scale = static_cast<float>(static_cast<double>(layout_of(elem).max) / floored);
  // The scale is normal (at least 448 / FLT_MAX), so clearing the mantissa is 2^floor(log2(scale)).
  return pow2 ? std::bit_cast<float>(std::bit_cast<uint32_t>(scale) & 0x7F800000u) : scale;
}

}  // namespace moe8
