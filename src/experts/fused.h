// SPDX-License-Identifier: BSD-3-Clause
// The layer of experts as one autograd function: products by low_precision_gemm, and stages between
// them.
#pragma once

#include <ATen/core/Tensor.h>

#include "experts/stages.h"

namespace moe8 {

/// What a call computes with; undefined tensors: there is none. Checked by moe_experts.cpp.
struct ExpertsTensors {
  at::Tensor x;           // [T, d]
  at::Tensor w1, w3, w2;  // as include/moe8/experts.h has them
  at::Tensor bias13;      // [E, 2h] float32, as W13 lies
  at::Tensor bias2;       // [E, d] float32
  at::Tensor scores;      // [T, k] float32
};

/// @return [T, d] of x's dtype. Differentiable once in all tensors. Arithmetic: docs/numerics.md,
/// section 6.
at::Tensor fused_experts(ExpertsCall call, const ExpertsTensors& tensors);

}  // namespace moe8
