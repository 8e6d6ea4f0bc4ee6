// SPDX-License-Identifier: BSD-3-Clause
// The layer of experts as one autograd function: products by low_precision_gemm, and stages between
// them.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "experts/arrived_tokens.h"
#include "experts/stages.h"

namespace moe8 {

/// What a call computes with; undefined tensors: there is none. Checked by moe_experts.cpp.
struct ExpertsTensors {
  at::Tensor x;           // [T, d]
  at::Tensor w1, w3, w2;  // as include/moe8/experts.h has them
  at::Tensor bias13;      // [E, 2h] float32, as W13 lies
  at::Tensor bias2;       // [E, d] float32
  at::Tensor scores;      // [T, k] float32

  /// Where tokens came from other ranks as codes: these; x is then a stand-in without values.
  std::optional<TokenCodes> codes{};
  /// Called in backward with the gradient of x as soon as that is there, before those of weights are
  /// computed: it may travel meanwhile. Unset: the products come in the order that is fastest.
  std::function<void(const at::Tensor& grad)> send_x_grad{};
  /// Called in forward instead of making the result at once; gives what stands for it.
  std::function<at::Tensor(const RowsWriter& write)> send_result{};
};

/// @return [T, d] of x's dtype. Differentiable once in all tensors. Arithmetic: docs/numerics.md,
/// section 6.
at::Tensor fused_experts(ExpertsCall call, const ExpertsTensors& tensors);

}  // namespace moe8
