// SPDX-License-Identifier: BSD-3-Clause
// Device helpers of the gated activation: the arithmetic of one pair and of eight. Every operation
// is spelled out, so that all kernels compute the same bits wherever the compiler inlines them.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/quantize/packet.cuh"
#include "kernels/gate_args.h"

namespace moe8::cuda {

using Packet16 = Packet<BFloat16>;

/// A GateActivation in numbers; SWIGLU is CLAMPED without limits.
struct GateNumbers {
  float alpha;
  float exponent;  // sigmoid(alpha * x) = 1 / (1 + 2^(exponent * x))
  float limit;
  float up_offset;  // what is added to up. -0.0 adds nothing, not even to -0.0

  static GateNumbers of(const GateActivation& a) {
    const bool clamped = a.function == GateFunction::CLAMPED;
    const float alpha = clamped ? a.alpha : 1.0f;
    return {alpha, alpha * kExponent, clamped ? a.limit : HUGE_VALF, clamped ? 1.0f : -0.0f};
  }
  static constexpr float kExponent = -1.44269504f;  // -log2(e)
};

/// The smaller and the larger; NaN where one of them is.
__device__ inline float min_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ inline float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

/// 1 / (1 + 2^x), to a few units in the last place of float32; what is below 2^-126 becomes 0.
__device__ inline float sigmoid_exp2(float x) {
  float power, sigmoid;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(__fadd_rn(1.0f, power)));
  return sigmoid;
}

/// A of one pair, and its derivatives.
struct Activated {
  float value;
  float by_gate;
  float by_up;
};

/// kPlain: SWIGLU, whatever `n` says.
template <bool kPlain>
__device__ Activated activate(const GateNumbers& n, float gate, float up) {
  if constexpr (kPlain) {
    const float s = sigmoid_exp2(__fmul_rn(gate, GateNumbers::kExponent));
    const float a = __fmul_rn(gate, s);
    const float slope = __fmaf_rn(a, __fsub_rn(1.0f, s), s);
    return {__fmul_rn(a, up), __fmul_rn(up, slope), a};
  }
  const float g = min_nan(gate, n.limit);
  const float u = __fadd_rn(max_nan(min_nan(up, n.limit), -n.limit), n.up_offset);
  const float s = sigmoid_exp2(__fmul_rn(g, n.exponent));
  const float a = __fmul_rn(g, s);
  const float slope = __fmaf_rn(__fmul_rn(n.alpha, a), __fsub_rn(1.0f, s), s);
  return {__fmul_rn(a, u), gate > n.limit ? 0.0f : __fmul_rn(u, slope),
          fabsf(up) > n.limit ? 0.0f : a};
}

/// Two floats rounded to bf16, the first in the lower half.
__device__ inline uint32_t round_pair(float a, float b) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
}

/// Eight pairs (gate, up) in two packets, as they lie in a row: the gates and the ups, or the first
/// four pairs and the last four.
template <typename P>
struct PairsOf {
  P first, second;

  template <GateLayout kLayout>
  __device__ float gate(int i) const {
    if constexpr (kLayout == GateLayout::HALVES) return first.get(i);
    return (i < 4 ? first : second).get(i % 4 * 2);
  }
  template <GateLayout kLayout>
  __device__ float up(int i) const {
    if constexpr (kLayout == GateLayout::HALVES) return second.get(i);
    return (i < 4 ? first : second).get(i % 4 * 2 + 1);
  }
};

struct Pairs : PairsOf<Packet16> {
  /// Rounds pairs 2 w and 2 w + 1.
  template <GateLayout kLayout>
  __device__ void set(int w, const float (&gate)[2], const float (&up)[2]) {
    if constexpr (kLayout == GateLayout::HALVES) {
      first.words[w] = round_pair(gate[0], gate[1]);
      second.words[w] = round_pair(up[0], up[1]);
    } else {
      Packet16& packet = w < 2 ? first : second;
      packet.words[w % 2 * 2] = round_pair(gate[0], up[0]);
      packet.words[w % 2 * 2 + 1] = round_pair(gate[1], up[1]);
    }
  }
};

}  // namespace moe8::cuda
