// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes as float32, by the hardware's conversion. Equal to decode() of src/formats/elem.h but
// for the bits of NaN.
#pragma once

#include <cstdint>

#include "cuda/quantize/float8.cuh"

namespace moe8::cuda {

/// The values of two codes as half precision, which holds both formats exactly.
template <ElemDtype elem>
__device__ uint32_t decode_pair(uint32_t codes) {
  static_assert(kHasConversion<elem>);
  uint32_t halves;
  const auto pair = static_cast<uint16_t>(codes);
  if constexpr (elem == ElemDtype::E4M3) {
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
  } else {
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(pair));
  }
  return halves;
}

/// Two codes of two halves: nearest even, saturating, NaN 0x7F.
template <ElemDtype elem>
__device__ uint32_t encode_halves(uint32_t halves) {
  static_assert(kHasConversion<elem>);
  uint16_t codes;
  if constexpr (elem == ElemDtype::E4M3) {
    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(codes) : "r"(halves));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f16x2 %0, %1;" : "=h"(codes) : "r"(halves));
  }
  return codes;
}

// ---- two halves in a word
__device__ inline uint32_t pack_halves(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ inline void unpack_halves(uint32_t halves, float& low, float& high) {
  asm("{.reg .f16 l, h;\n\tmov.b32 {l, h}, %2;\n\tcvt.f32.f16 %0, l;\n\tcvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(halves));
}

__device__ inline uint32_t multiply_halves(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

/// The larger magnitudes, NaN when either is one; signs may be anything.
__device__ inline uint32_t max_magnitude_halves(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// ---- products of codes and powers of two, in half precision where that is exact
/// How much smaller than the largest scale of its neighbours a row's scale may be, so that the
/// product of a code and their ratio is a half: the last bit of the smallest code is 2^-9 or 2^-16,
/// that of the smallest half 2^-24.
template <ElemDtype elem>
inline constexpr float kLeastRatio = elem == ElemDtype::E4M3 ? 0x1p-15f : 0x1p-8f;

__device__ inline bool is_power_of_two(float x) {
  return (__float_as_uint(x) & 0x7FFFFFu) == 0;
}

}  // namespace moe8::cuda
