// SPDX-License-Identifier: BSD-3-Clause
// AdamW on one element and what a step computes once per tensor: the same operations, fused where
// they say so, on every device, so that all give the same bits. Without Torch.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "formats/float_type.h"

namespace moe8 {

/// What does not change from step to step. Computed in float64, rounded once.
struct AdamWRule {
  double beta1, beta2;
  float first_decay, first_share;    // beta1, 1 - beta1
  float second_decay, second_share;  // beta2, 1 - beta2
  float eps;
  float max_norm;  // infinity: gradients are not clipped

  static AdamWRule of(double beta1, double beta2, double eps, double max_norm) {
    return {beta1,
            beta2,
            static_cast<float>(beta1),
            static_cast<float>(1 - beta1),
            static_cast<float>(beta2),
            static_cast<float>(1 - beta2),
            static_cast<float>(eps),
            static_cast<float>(max_norm)};
  }
};

/// How often a tensor was stepped, and its betas to that power, multiplied step by step.
struct AdamWClock {
  double beta1_power = 1;
  double beta2_power = 1;
  int64_t steps = 0;
  uint64_t key_offset = 0;  // of a part of a tensor: see rounding_offset()
};

/// What a step needs of its number, its learning rate and the norm of the gradients.
struct StepScalars {
  float clip;          // factor of the gradients
  float decay;         // 1 - learning rate * weight decay
  float step_size;     // learning rate / (1 - beta1^t)
  float inverse_root;  // 1 / sqrt(1 - beta2^t)
  uint32_t key;        // of the random bits that round moments to bf16
  uint32_t go;         // 0: the norm is not finite, nothing changes
};

/// min(1, max_norm / (norm + 1e-6)), as LibTorch clips.
inline MOE8_HD float clip_factor(float norm, float max_norm) {
  const float factor = max_norm / (norm + 1e-6f);
  return factor < 1.0f ? factor : 1.0f;
}

// nvcc would fuse a product with the sum that follows it.
inline MOE8_HD double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

/// 32 bits that look random, and differ for neighbouring arguments.
inline MOE8_HD uint32_t scramble(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

/// Counts a step of tensor number `index`, unless the norm is not finite. Without a norm (null)
/// nothing is clipped and nothing left out.
inline MOE8_HD StepScalars begin_step(AdamWClock& clock, const AdamWRule& rule,
                                      double learning_rate, double weight_decay, const float* norm,
                                      uint32_t index) {
  const bool is_finite = norm == nullptr || magnitude_bits(*norm) < 0x7F800000u;
  StepScalars s{1.0f, 1.0f, 0.0f, 1.0f, 0u, 0u};
  if (!is_finite) return s;
  clock.beta1_power = rounded_product(clock.beta1_power, rule.beta1);
  clock.beta2_power = rounded_product(clock.beta2_power, rule.beta2);
  ++clock.steps;
  if (norm != nullptr) s.clip = clip_factor(*norm, rule.max_norm);
  s.decay = static_cast<float>(fma(-learning_rate, weight_decay, 1.0));
  s.step_size = static_cast<float>(learning_rate / (1.0 - clock.beta1_power));
  s.inverse_root = static_cast<float>(1.0 / sqrt(1.0 - clock.beta2_power));
  s.key = scramble(scramble(static_cast<uint32_t>(clock.steps)) + index) +
          static_cast<uint32_t>(clock.key_offset);
  s.go = 1u;
  return s;
}

/// A weight and its moments in float32.
struct AdamWElement {
  float weight, first, second;
};

/// g' = clip * g; m' = beta1 m + (1 - beta1) g'; v' = beta2 v + (1 - beta2) g'^2;
/// w' = decay * w - step_size * m' / (sqrt(v') * inverse_root + eps).
inline MOE8_HD AdamWElement adamw(const AdamWElement& x, float grad, const AdamWRule& rule,
                                  const StepScalars& s) {
  const float g = grad * s.clip;
  const float first = fmaf(rule.first_decay, x.first, rule.first_share * g);
  const float second = fmaf(rule.second_decay, x.second, (rule.second_share * g) * g);
  const float root = fmaf(sqrtf(second), s.inverse_root, rule.eps);
  return {fmaf(-s.step_size, first / root, x.weight * s.decay), first, second};
}

/// Random bits of element i: the low half rounds the first moment, the high half the second.
inline MOE8_HD uint32_t rounding_bits(uint32_t key, int64_t i) {
  return scramble(static_cast<uint32_t>(i) * 0x9E3779B9u + key);
}

/// For a part of a tensor that begins with its element `first`: the random bits of the whole are
/// rounding_bits(key + rounding_offset(first), i) == rounding_bits(key, first + i).
inline MOE8_HD uint32_t rounding_offset(int64_t first) {
  return static_cast<uint32_t>(first) * 0x9E3779B9u;
}

/// Rounded up with the probability that the bits dropped stand for; `random` has 16 bits. A mean of
/// many steps thus moves even where each step is less than half a unit of bf16.
inline MOE8_HD BFloat16 to_bf16_stochastic(float x, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + random) >> 16, quiet = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>(select((bits & 0x7FFFFFFFu) > 0x7F800000u, quiet, rounded))};
}

/// As moments are stored: float32 as they are.
template <typename T>
inline MOE8_HD T stored_moment(float x, uint32_t random);
template <>
inline MOE8_HD float stored_moment<float>(float x, uint32_t) {
  return x;
}
template <>
inline MOE8_HD BFloat16 stored_moment<BFloat16>(float x, uint32_t random) {
  return to_bf16_stochastic(x, random);
}

// ---- the norm of all gradients --------------------------------------------------
/// Gradients are summed in runs of this many elements: element i of a run belongs to lane i modulo
/// kNormLanes, lanes add up in float32 in order, and a tree of neighbours adds the lanes.
constexpr int64_t kNormChunk = 32768;
constexpr int64_t kNormLanes = 2048;
/// The sums of runs are added in float64 in the same way, run i in lane i modulo this.
constexpr int64_t kNormSumLanes = 1024;

}  // namespace moe8
