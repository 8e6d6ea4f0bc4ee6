// SPDX-License-Identifier: BSD-3-Clause
// The routed experts of a mixture-of-experts layer as one differentiable function, in the precision
// of a recipe or in high precision. Routers and orders of rows: routing.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "moe8/activation.h"
#include "moe8/config.h"
#include "moe8/routing.h"

namespace moe8 {

/// How gate and up lie in one weight (E, 2h, d), and in its bias (E, 2h).
enum class GateUpLayout {
  HALVES,       // h rows of the gate, then h rows of the up projection
  INTERLEAVED,  // gate in the even rows, up in the odd ones
};

/// What a token's score multiplies. Either way the score is no part of what is quantized.
enum class ScorePlacement {
  OUTPUT,  // the expert's output
  INPUT,   // the expert's input; applied in float32 to the first product, which is linear in it
};

/// From what the FP8 codes along tokens, operands of the weights' gradients, are made; on a GPU with
/// kernels of moe8 also the weights' codes that the gradient of x is computed with. Matters to recipes
/// with one power-of-two scale per row (fp8_rowwise) and is without effect in others.
enum class ColumnCodes {
  AUTO,            // the faster one: FROM_ROW_CODES on a GPU with kernels of moe8, else FROM_VALUES
  FROM_VALUES,     // the values in high precision: torchao's arithmetic
  FROM_ROW_CODES,  // the values that the codes along rows stand for. As scales are powers of two,
                   // codes differ from those of FROM_VALUES by underflow, and where rounding moved
                   // the largest magnitude of a group's column: docs/numerics.md, section 6
};

/// What backward gets of the hidden rows H (R, 2h), the results of the first product.
enum class SavedHidden {
  SOURCE,  // H as the product left it
  FLOAT8,  // e4m3 codes of H, a power-of-two scale per row: half the memory of bf16. The activation
           // and its gradients are then those of rounded rows (docs/numerics.md, section 6)
};

/// Who computes: AUTO is the first of FUSED, UNFUSED that does not refuse the call.
enum class ExpertsImplementation {
  AUTO,
  FUSED,    // one autograd function over the products: docs/numerics.md, section 6
  UNFUSED,  // at::_grouped_mm and LibTorch's operations, each with its own gradient
};

/// Weights of low rank beside those of a product, as LoRA trains them: x W^T + scale (x a^T) b^T.
struct ExpertAdapter {
  at::Tensor a{};  // [E, r, in]; undefined, as b: none
  at::Tensor b{};  // [E, out, r]
};

/// Everything of moe_experts beside tensors that every call has.
struct ExpertsOptions {
  GateUpLayout gate_up = GateUpLayout::HALVES;  // of w1 where w3 is undefined
  Activation activation = Activation::SWIGLU;
  double alpha = 1.702;  // of CLAMPED_SWIGLU
  double limit = 7.0;    // of CLAMPED_SWIGLU, above 0
  ScorePlacement scores = ScorePlacement::OUTPUT;

  at::Tensor b1{};  // [E, h], or [E, 2h] where w3 is undefined; each bias may be undefined
  at::Tensor b3{};  // [E, h]; undefined where w3 is
  at::Tensor b2{};  // [E, d]

  /// Of w1, w3 and w2, in high precision, and only where gate and up are two weights. UNFUSED alone
  /// computes them.
  ExpertAdapter adapter1{}, adapter3{}, adapter2{};
  double adapter_scale = 1;

  /// Of all three weights, a grouped one. Not set: that with which each weight was converted, and
  /// for weights that were not high precision.
  std::optional<Config> config = std::nullopt;
  ColumnCodes column_codes = ColumnCodes::AUTO;
  SavedHidden saved_hidden = SavedHidden::SOURCE;
  ExpertsImplementation implementation = ExpertsImplementation::AUTO;
};

/// All routed experts of a layer, on tokens in their own order:
///
///   out[t] = sum_j  s[t, j] * (W2[e] act(W1[e] x[t] + b1[e], W3[e] x[t] + b3[e]) + b2[e])
///                                                         e = experts[t, j], s = scores (OUTPUT)
///
/// With ScorePlacement::INPUT s multiplies x[t] instead. Slots whose expert is outside [0, E) add
/// nothing and get zero gradients.
///
/// @param x        [T, d] bf16 or float32; T may be 0
/// @param w1       [E, h, d] the gate's weight; or gate and up in one [E, 2h, d], see gate_up
/// @param w3       [E, h, d] the up projection's weight; undefined where w1 holds both
/// @param w2       [E, d, h]
/// Weights are bf16 or float32 of any strides; without conversion and config of x's dtype. One that
/// is stored as (E, in, out) is passed as W.transpose(-2, -1): a view, no copy.
/// @param experts  [T, k] int32 or int64, any k
/// @param scores   [T, k] floating-point; undefined: all 1
/// @return         [T, d] of x's dtype, contiguous
///
/// Under autocast x, weights and biases are cast to its dtype first.
/// Separate weights, and one weight by halves, give the same bits. An interleaved one has the same
/// products but that of the gradient of x, which adds up in another order and has other MX blocks;
/// sums over h, such as the gradients of scores, add up in another order as well.
/// @throws c10::Error when a rank, dtype, device or size is wrong, naming argument, expected, got;
/// when options.config is that of a linear; when FUSED is asked for and refuses, with the reason.
/// Differentiable once in x, weights, biases and scores, in any combination; gradients have their
/// dtypes; an expert without tokens has gradients of exactly 0. Twice is an error, but by UNFUSED.
/// Deterministic. A second backward needs retain_graph, as everywhere: what forward kept goes once
/// it has been read. No host synchronisation where moe8 has kernels. Source: docs/numerics.md,
/// section 6. MOE8_LOG=dispatch prints who computes, and why others do not.
at::Tensor moe_experts(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w3,
                       const at::Tensor& w2, const at::Tensor& experts, const at::Tensor& scores,
                       const ExpertsOptions& options = {});

/// The same, of an order that is there already: expert_order(experts, E).
at::Tensor moe_experts(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w3,
                       const at::Tensor& w2, const ExpertOrder& order, const at::Tensor& scores,
                       const ExpertsOptions& options = {});

}  // namespace moe8
