// SPDX-License-Identifier: BSD-3-Clause
// High-precision inputs and outputs of the quantizers: bf16 and float32, as bits.
#pragma once

#include <bit>
#include <cstdint>

#include "formats/elem.h"

namespace moe8 {

enum class FloatType { BF16, F32 };

/// A bf16 number as its 16 bits; a type of its own so that templates can tell it from integers.
struct BFloat16 {
  uint16_t bits;
};

constexpr MOE8_HD float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
constexpr MOE8_HD float to_float(float x) {
  return x;
}

/// float32 to T, nearest, ties to even; NaN stays a (quiet) NaN.
template <typename T>
constexpr MOE8_HD T from_float(float x);

template <>
constexpr MOE8_HD float from_float<float>(float x) {
  return x;
}

template <>
constexpr MOE8_HD BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>(select((bits & 0x7FFFFFFFu) > 0x7F800000u, quiet, rounded))};
}

/// The float32 bits of |x|.
template <typename T>
constexpr MOE8_HD uint32_t magnitude_bits(T x) {
  return std::bit_cast<uint32_t>(to_float(x)) & 0x7FFFFFFFu;
}

}  // namespace moe8
