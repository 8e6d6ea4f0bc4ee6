// SPDX-License-Identifier: BSD-3-Clause
// The activation between the two products of experts and its backward, in LibTorch's operations:
// the definition of their arithmetic (docs/numerics.md, section 6).
#pragma once

#include <ATen/core/Tensor.h>

#include "experts/stages.h"

namespace moe8 {

/// A' = act(h') with h' = scores * H + bias or H + bias, in float32, rounded once to hidden_dtype.
/// @return [R, h]
at::Tensor activate(const ExpertsCall& call, const ActivationInputs& inputs);

/// What the backward gives, in high precision.
struct ActivationGradTensors {
  at::Tensor dH;      // [R, 2h] hidden_dtype
  at::Tensor A;       // [R, h] hidden_dtype
  at::Tensor scores;  // float32 [T, k]
  at::Tensor bias;    // float32 [E, 2h]
};

/// @param wants_dH, wants_A  and those of `wants`: others stay undefined
ActivationGradTensors activate_backward(const ExpertsCall& call, const ActivationInputs& inputs,
                                        const at::Tensor& dA, bool wants_dH, bool wants_A,
                                        bool wants_scores, bool wants_bias);

}  // namespace moe8
