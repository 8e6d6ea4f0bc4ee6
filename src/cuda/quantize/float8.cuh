// SPDX-License-Identifier: BSD-3-Clause
// Device helpers of the FP8 quantizers: scales from an amax, codes by the hardware's conversion.
// Both equal src/formats/ bit for bit (tests/cuda/quantize_check compares them).
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/quantize/packet.cuh"
#include "formats/elem.h"
#include "formats/float8_scale.h"

namespace moe8::cuda {

/// The least float32 that counts as itself and not as the floor of 1e-12.
inline constexpr float kAmaxFloor =
    static_cast<double>(static_cast<float>(kFloat8AmaxFloor)) < kFloat8AmaxFloor
        ? std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(kFloat8AmaxFloor)) + 1)
        : static_cast<float>(kFloat8AmaxFloor);

/// float8_scale() without double precision: the power of two is an exponent and a comparison, and a
/// float32 division rounds as the double one rounded to float32 does (53 >= 2 * 24 + 2 bits).
template <ElemDtype elem>
__device__ float scale_of(uint32_t amax_bits, bool pow2) {
  constexpr ElemLayout f = layout_of(elem);
  if (amax_bits >= 0x7F800000u) {
    return __uint_as_float(amax_bits > 0x7F800000u ? 0x7FC00000u : 0u);
  }
  if (pow2) {
    // 1.75 is the mantissa of V: above it 2^(exponent of V) / amax loses one more power. The sum
    // carries into the exponent just then.
    constexpr int kLargest = (std::bit_cast<uint32_t>(float8_scale(0, elem, true)) >> 23) - 127;
    const int exponent = static_cast<int>((amax_bits + (0x7FFFFFu - 0x600000u)) >> 23) - 127;
    const int e = min(f.max_exponent - exponent, kLargest);
    return __uint_as_float(static_cast<uint32_t>(e + 127) << 23);
  }
  const float amax = __uint_as_float(amax_bits);
  return amax < kAmaxFloor ? float8_scale(0, elem, false) : __fdiv_rn(f.max, amax);
}

/// What the GEMM multiplies by. The NaN is spelled out: the hardware's own has other bits.
__device__ inline float inverse_of(float scale) {
  return isnan(scale) ? __uint_as_float(0x7FC00000u) : __fdiv_rn(1.0f, scale);
}

/// Whether the hardware converts to the format.
template <ElemDtype elem>
inline constexpr bool kHasConversion = elem == ElemDtype::E4M3 || elem == ElemDtype::E5M2;

/// Two codes, of a and (in the upper byte) b: nearest even, saturating, NaN 0x7F.
template <ElemDtype elem>
__device__ uint32_t encode_pair(float a, float b) {
  static_assert(kHasConversion<elem>);
  uint16_t codes;
  if constexpr (elem == ElemDtype::E4M3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(b), "f"(a));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(b), "f"(a));
  }
  return codes;
}

template <ElemDtype elem>
__device__ uint32_t encode_four(float a, float b, float c, float d) {
  return encode_pair<elem>(a, b) | encode_pair<elem>(c, d) << 16;
}

template <ElemDtype elem, typename T>
__device__ Codes encode_packet(const Packet<T>& x, float scale) {
  Codes codes;
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    codes.words[w] = encode_four<elem>(x.get(4 * w) * scale, x.get(4 * w + 1) * scale,
                                       x.get(4 * w + 2) * scale, x.get(4 * w + 3) * scale);
  }
  return codes;
}

}  // namespace moe8::cuda
