// SPDX-License-Identifier: BSD-3-Clause
// The differentiable core of every operation: out = A W^T + bias by group, with its gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "autograd/training_formats.h"

namespace moe8 {

/// out[m, :] = sum_k A[m, k] * W[e(m), :, k] + bias[e(m), :], each GEMM with operands in `formats`.
///
/// @param A     [M, K] bf16 or float32
/// @param W     [E, N, K] bf16 or float32
/// @param offs  [E] int32 end rows, or not set: E = 1 and all rows
/// @param bias  [E, N] floating-point, or not set; see group_bias.h
/// @return      [M, N] out_dtype
/// Differentiable once in A, W and bias (twice is an error); gradients in their dtypes. What a
/// gradient does not need is not saved; what of A is saved and whether W's quantized forms are used
/// again is set by include/moe8/memory.h. Trusts its arguments.
at::Tensor low_precision_mm(const at::Tensor& A, const at::Tensor& W,
                            const std::optional<at::Tensor>& offs, const TrainingFormats& formats,
                            at::ScalarType out_dtype,
                            const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace moe8
