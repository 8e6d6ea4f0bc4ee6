// SPDX-License-Identifier: BSD-3-Clause
// Element formats: the table of their bit layouts, and scalar encode and decode, bit-exact on host
// and device. Header-only; no Torch, no CUDA runtime. Scales are in e8m0.h.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "formats/host_device.h"
#include "moe8/formats.h"

namespace moe8 {

/// Layout of one element format: sign, exponent, mantissa from the top bit of the code.
struct ElemLayout {
  int exponent_bits;
  int mantissa_bits;
  int bias;
  int max_exponent;  // the largest power of two is 2^max_exponent
  float max;         // the largest finite value, V
  int nan_cast;      // the code that NaN is cast to, without sign

  constexpr int bits() const { return 1 + exponent_bits + mantissa_bits; }
  constexpr int min_exponent() const { return 1 - bias; }  // of normal numbers
};

/// The table of docs/numerics.md, section 1. Index: ElemDtype.
/// In formats without NaN the code is the one that rounding the NaN's bits like a number's leaves,
/// as in torchao's casts: equal bytes, although no reader can tell what they were.
inline constexpr std::array<ElemLayout, 5> kElemLayouts = {{
    {4, 3, 7, 8, 448.0f, 0x7F},      // E4M3 (fn: no Inf)
    {5, 2, 15, 15, 57344.0f, 0x7F},  // E5M2 (0x7C is Inf)
    {2, 3, 1, 2, 7.5f, 0x0C},        // E2M3
    {3, 2, 3, 4, 28.0f, 0x0E},       // E3M2
    {2, 1, 1, 2, 6.0f, 0x03},        // E2M1
}};

constexpr MOE8_HD ElemLayout layout_of(ElemDtype elem) {
#if defined(__CUDA_ARCH__)
  constexpr auto layouts = kElemLayouts;  // device code cannot see the host's variables
  return layouts[static_cast<size_t>(elem)];
#else
  return kElemLayouts[static_cast<size_t>(elem)];
#endif
}

/// 2^e as float32 for -149 <= e <= 127, subnormals included.
constexpr MOE8_HD float exp2_exact(int e) {
  return e >= -126 ? std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23)
                   : std::bit_cast<float>(uint32_t{1} << (e + 149));
}

/// condition ? a : b by masks: compilers make a branch of ?:, and then no vector code of the loop.
constexpr MOE8_HD uint32_t select(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

/// Nearest code, ties to even, saturating at +-max; the sign of zero and of underflow is kept.
/// NaN of either sign gives nan_cast. The code fits a byte; it is returned as a word, and made
/// without branches, so that loops over it become vector code of one lane width.
constexpr MOE8_HD uint32_t encode(float x, ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  const int drop = 23 - f.mantissa_bits;  // mantissa bits that do not fit
  const uint32_t max_bits = std::bit_cast<uint32_t>(f.max);
  const uint32_t magnitude = std::bit_cast<uint32_t>(x) & 0x7FFFFFFFu;
  const bool is_nan = magnitude > 0x7F800000u;
  const uint32_t clamped = select(magnitude < max_bits, magnitude, max_bits);

  const uint32_t odd = (clamped >> drop) & 1;
  const uint32_t rounded = (clamped + odd + (1u << (drop - 1)) - 1) >> drop;
  const uint32_t normal = rounded - (static_cast<uint32_t>(127 - f.bias) << f.mantissa_bits);

  // Below the smallest normal, codes count steps of 2^(min_exponent - mantissa_bits). Adding a
  // number whose last bit is one such step makes the adder round for us.
  const float adder = exp2_exact(f.min_exponent() - f.mantissa_bits + 23);
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(clamped) + adder) -
                             std::bit_cast<uint32_t>(adder);

  const bool is_subnormal = clamped < std::bit_cast<uint32_t>(exp2_exact(f.min_exponent()));
  const uint32_t sign = (std::bit_cast<uint32_t>(x) >> 31) << (f.bits() - 1);
  const uint32_t code = select(is_subnormal, subnormal, normal) | sign;
  return select(is_nan, static_cast<uint32_t>(f.nan_cast), code);
}

/// Constants of a format for code that rounds many numbers: one loop then serves all formats.
struct ElemRounding {
  uint32_t max_bits;
  uint32_t min_normal_bits;
  uint32_t adder;       // in units of a float32's exponent field, see round_to_elem
  uint32_t drop;        // mantissa bits that do not fit
  uint32_t sign;        // mask of a code's sign
  uint32_t sign_shift;  // from a float32's sign to that
  uint32_t nan_cast;

  constexpr MOE8_HD explicit ElemRounding(ElemDtype elem)
      : max_bits(std::bit_cast<uint32_t>(layout_of(elem).max)),
        min_normal_bits(std::bit_cast<uint32_t>(exp2_exact(layout_of(elem).min_exponent()))),
        adder(static_cast<uint32_t>(23 - layout_of(elem).mantissa_bits) << 23),
        drop(static_cast<uint32_t>(23 - layout_of(elem).mantissa_bits)),
        sign(1u << (layout_of(elem).bits() - 1)),
        sign_shift(static_cast<uint32_t>(32 - layout_of(elem).bits())),
        nan_cast(static_cast<uint32_t>(layout_of(elem).nan_cast)) {}
};

/// A magnitude cut to the format's range, and the number whose sum with it has its last bit where
/// the code has its own: 2^(e + 23 - mantissa_bits) for exponent e. The adder then rounds for us.
struct RoundingSum {
  float clamped;
  float adder;
};

constexpr MOE8_HD RoundingSum rounding_sum(uint32_t magnitude, const ElemRounding& f) {
  const uint32_t clamped = magnitude < f.max_bits ? magnitude : f.max_bits;
  const uint32_t normal = clamped > f.min_normal_bits ? clamped : f.min_normal_bits;
  return {std::bit_cast<float>(clamped), std::bit_cast<float>((normal & 0x7F800000u) + f.adder)};
}

/// decode(encode(x)) without the code on the way, for numbers and Inf. NaN gives +-max: callers
/// multiply by a scale that is NaN then.
constexpr MOE8_HD float round_to_elem(float x, const ElemRounding& f) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const RoundingSum sum = rounding_sum(bits & 0x7FFFFFFFu, f);
  const float rounded = (sum.clamped + sum.adder) - sum.adder;  // the difference is exact
  return std::bit_cast<float>(std::bit_cast<uint32_t>(rounded) | (bits & 0x80000000u));
}

/// encode(x, elem) for loops over many numbers.
constexpr MOE8_HD uint32_t encode(float x, const ElemRounding& f) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const RoundingSum sum = rounding_sum(magnitude, f);
  const uint32_t adder = std::bit_cast<uint32_t>(sum.adder);
  const uint32_t steps = std::bit_cast<uint32_t>(sum.clamped + sum.adder) - adder;
  const uint32_t code = steps + ((adder - f.adder - f.min_normal_bits) >> f.drop);
  const bool is_nan = static_cast<int32_t>(magnitude) > 0x7F800000;  // AVX2 compares signed
  return select(is_nan, f.nan_cast, code | ((bits >> f.sign_shift) & f.sign));
}

/// The value of a code, as encode() makes it.
constexpr MOE8_HD float decode(uint32_t code, ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  const uint32_t sign = (code >> (f.bits() - 1)) << 31;
  const uint32_t magnitude = code & ((1u << (f.bits() - 1)) - 1);
  const uint32_t normal =
      (magnitude << (23 - f.mantissa_bits)) + (static_cast<uint32_t>(127 - f.bias) << 23);
  const float subnormal = static_cast<float>(static_cast<int>(magnitude)) *
                          exp2_exact(f.min_exponent() - f.mantissa_bits);
  uint32_t bits =
      select((magnitude >> f.mantissa_bits) == 0, std::bit_cast<uint32_t>(subnormal), normal);
  if (elem == ElemDtype::E5M2) {
    bits = select(magnitude >= 0x7C, select(magnitude == 0x7C, 0x7F800000u, 0x7FC00000u), bits);
  } else if (elem == ElemDtype::E4M3) {
    bits = select(magnitude == static_cast<uint32_t>(f.nan_cast), 0x7FC00000u, bits);
  }
  return std::bit_cast<float>(sign | bits);
}

}  // namespace moe8
