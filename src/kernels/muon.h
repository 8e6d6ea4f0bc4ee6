// SPDX-License-Identifier: BSD-3-Clause
// Muon on one element, before and after its products: the same operations, fused where they say so,
// in the reference and on a GPU. Without Torch.
#pragma once

#include <cmath>

#include "kernels/adamw.h"

namespace moe8 {

/// What all tensors of a step share.
struct MuonRule {
  float momentum;
  float max_norm;  // infinity: gradients are not clipped
};

struct MuonElement {
  float momentum;   // u' = momentum u + clip g
  float direction;  // clip g + momentum u': what is brought near orthogonal
};

/// @param clip  of clip_factor(); 1 without a norm
inline MOE8_HD MuonElement muon_direction(float momentum, float grad, float clip,
                                          const MuonRule& rule) {
  const float g = grad * clip;
  const float next = fmaf(rule.momentum, momentum, g);
  return {next, fmaf(rule.momentum, next, g)};
}

/// The factors of a tensor's step: w' = decay w - size o.
struct MuonScalars {
  float decay;  // 1 - learning rate * weight decay
  float size;   // learning rate * 0.2 sqrt(max(rows, columns))
};

inline MOE8_HD MuonScalars muon_scalars(double learning_rate, double weight_decay, double scale) {
  return {static_cast<float>(fma(-learning_rate, weight_decay, 1.0)),
          static_cast<float>(learning_rate * scale)};
}

/// @param direction  o, orthogonalized
inline MOE8_HD float muon_weight(float weight, float direction, const MuonScalars& s) {
  return fmaf(-s.size, direction, weight * s.decay);
}

}  // namespace moe8
