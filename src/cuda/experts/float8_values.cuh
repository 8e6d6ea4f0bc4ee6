// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes as float32, by the hardware's conversion. Equal to decode() of src/formats/elem.h but for the
// bits of NaN.
#pragma once

#include <cstdint>

#include "cuda/quantize/float8.cuh"

namespace moe8::cuda {

/// The values of the four codes in a word. Exact: half precision holds both formats.
template <ElemDtype elem>
__device__ void decode_four(uint32_t codes, float (&values)[4]) {
  static_assert(kHasConversion<elem>);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto pair = static_cast<uint16_t>(codes >> (16 * i));
    uint32_t halves;
    if constexpr (elem == ElemDtype::E4M3) {
      asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    } else {
      asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(pair));
    }
    asm("{.reg .f16 lo, hi;\n\t"
        "mov.b32 {lo, hi}, %2;\n\t"
        "cvt.f32.f16 %0, lo;\n\t"
        "cvt.f32.f16 %1, hi;}"
        : "=f"(values[2 * i]), "=f"(values[2 * i + 1])
        : "r"(halves));
  }
}

/// max(a, |b|) for a >= 0; NaN when either is.
__device__ inline float max_magnitude(float a, float b) {
  float r;
  asm("{.reg .f32 m;\n\tabs.f32 m, %2;\n\tmax.NaN.f32 %0, %1, m;}" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

}  // namespace moe8::cuda
