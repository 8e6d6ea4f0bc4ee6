// SPDX-License-Identifier: BSD-3-Clause
// MX scales: a byte s means 2^(s - 127), 255 means NaN. How s follows from a block's amax stands
// here and nowhere else (docs/numerics.md, section 3). Header-only; no Torch, no CUDA runtime.
#pragma once

#include <bit>

#include "formats/elem.h"

namespace moe8 {

inline constexpr uint8_t kE8m0NaN = 255;

/// The scale byte of a block whose largest magnitude has these float32 bits (sign bit clear).
/// Inf and NaN give kE8m0NaN in every mode, as does what EVEN rounds up to Inf; the exponent of
/// zero and subnormals counts as -127.
constexpr MOE8_HD uint8_t mx_scale(uint32_t amax_bits, const ElemLayout& f,
                                   ScaleCalculationMode mode) {
  // EVEN rounds amax to the element's precision first.
  const uint32_t half_step = mode == ScaleCalculationMode::EVEN ? 1u << (22 - f.mantissa_bits) : 0u;
  const uint32_t bits = amax_bits + half_step;
  int scale = 0;
  if (mode == ScaleCalculationMode::RCEIL) {
    // The smallest power of two that is at least amax / V, so that no code saturates. 2^-127 is the
    // byte 0 although float32 holds it as a subnormal: hence the other threshold there.
    const uint32_t d = std::bit_cast<uint32_t>(std::bit_cast<float>(amax_bits) * (1.0f / f.max));
    const int exponent = static_cast<int>(d >> 23);
    const uint32_t mantissa = d & 0x7FFFFFu;
    scale = exponent + (mantissa > (exponent == 0 ? 0x400000u : 0u) ? 1 : 0);
  } else {
    const bool up = mode == ScaleCalculationMode::CEIL && (bits & 0x7FFFFFu) != 0;
    scale = static_cast<int>(bits >> 23) + (up ? 1 : 0) - f.max_exponent;
    scale = scale < 0 ? 0 : scale;
  }
  return static_cast<uint8_t>(select(bits >= 0x7F800000u, kE8m0NaN, static_cast<uint32_t>(scale)));
}

constexpr MOE8_HD uint8_t mx_scale(uint32_t amax_bits, ElemDtype elem, ScaleCalculationMode mode) {
  return mx_scale(amax_bits, layout_of(elem), mode);
}

/// 2^(s - 127), what a code is multiplied by; NaN for 255.
constexpr MOE8_HD float mx_scale_value(uint8_t s) {
  const uint32_t bits = static_cast<uint32_t>(s) << 23;  // exponent field s: right for 1 to 254
  return std::bit_cast<float>(
      select(s == 0, 0x00400000u, select(s == kE8m0NaN, 0x7FC00000u, bits)));
}

/// 2^(127 - s), what the source is multiplied by before the cast; exact also for s = 0 and 254.
constexpr MOE8_HD float mx_scale_inverse(uint8_t s) {
  return mx_scale_value(static_cast<uint8_t>(s == kE8m0NaN ? kE8m0NaN : 254 - s));
}

}  // namespace moe8
