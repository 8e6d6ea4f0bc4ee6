// SPDX-License-Identifier: BSD-3-Clause
// Low-precision grouped matrix products: every expert's token rows times that expert's weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moe8/config.h"
#include "moe8/mx.h"

namespace moe8 {

/// Quantizes A and B to FP8 (e4m3, one power-of-two scale per row) and multiplies by expert.
///
///   out[m, :] = sum_k  A[m, k] * B_t[e(m), k, :]  +  bias[e(m), :]
///                                                  e(m): the expert whose row range holds m
///
/// @param A     [M, K] bf16 or float32; rows of one expert contiguous.
/// @param B_t   [E, K, N] bf16 or float32, normally W.transpose(-2, -1); any strides.
/// @param offs  [E] int32 on A's device; offs[e] = END row of expert e (not its first row): the
///              cumulative sum of the experts' rows, without a leading 0; non-decreasing, repeats
///              are empty experts; offs[E-1] <= M.
/// @param bias  [E, N] of any floating-point dtype, or nothing; added in out_dtype.
/// @return      [M, N] out_dtype (bf16 or float32), contiguous; rows at or past offs[E-1] are zero.
/// @throws c10::Error when ranks, dtypes, devices or sizes disagree; the message names argument,
///         expected and got. On a CPU also when offs decreases or passes M; on a GPU only with
///         MOE8_CHECK_OFFS=on; otherwise results are not defined there, but stay in their tensors.
/// Differentiable once in A, B_t and bias; gradients have their dtypes; an empty expert's are zero;
/// that of bias is the unquantized sum over the expert's rows, in float32. Deterministic. No host
/// synchronisation where moe8 has kernels (docs/env.md). Source: docs/numerics.md, section 4.
at::Tensor to_fp8_rowwise_then_scaled_grouped_mm(
    const at::Tensor& A, const at::Tensor& B_t, const at::Tensor& offs,
    at::ScalarType out_dtype = at::kBFloat16, const std::optional<at::Tensor>& bias = std::nullopt);

/// The same product in MXFP8: e4m3, one e8m0 scale per 32 elements along each contracted axis.
/// Blocks along tokens (grad_W) start afresh at each expert's first row, so any group size is
/// allowed. Arguments, result, errors, edges and determinism as above; also throws when config is
/// not valid. With config.wgrad_with_hp grad_W is computed from unquantized operands.
at::Tensor to_mxfp8_then_scaled_grouped_mm(const at::Tensor& A, const at::Tensor& B_t,
                                           const at::Tensor& offs,
                                           const MXFP8GroupedMMConfig& config = {},
                                           const std::optional<at::Tensor>& bias = std::nullopt);

/// The same with activations that are quantized already.
/// @param A  MXTensor of [M, K], e4m3, blocks along K, no offs, as quantize_mx(x) makes it.
/// Needs config.wgrad_with_hp (else throws); no gradient flows to A; grad_W uses the dequantized A.
at::Tensor to_mxfp8_then_scaled_grouped_mm(const MXTensor& A, const at::Tensor& B_t,
                                           const at::Tensor& offs,
                                           const MXFP8GroupedMMConfig& config = {},
                                           const std::optional<at::Tensor>& bias = std::nullopt);

/// One of the above, by config. @throws c10::Error when the config is that of a linear.
at::Tensor quantize_then_scaled_grouped_mm(const at::Tensor& A, const at::Tensor& B_t,
                                           const at::Tensor& offs, const Config& config,
                                           const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace moe8
