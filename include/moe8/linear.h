// SPDX-License-Identifier: BSD-3-Clause
// Low-precision linear layers: y = x W^T + b with quantized operands.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moe8/config.h"

namespace moe8 {

/// Quantizes x and weight as `config` says and multiplies.
///
///   y[..., n] = sum_k  x[..., k] * weight[n, k]  + bias[n]
///
/// @param x       [..., K] bf16 or float32, any rank >= 1, any number of rows (0 included).
/// @param weight  [N, K] bf16 or float32, any strides.
/// @param bias    [N] or nothing; added in the output dtype.
/// @param config  an MXLinearConfig or a Float8LinearConfig.
/// @return        [..., N], contiguous, the dtype of x.
/// @throws c10::Error when ranks, dtypes, devices or sizes disagree, or the config is a grouped
///         one or not valid; the message names argument, expected and got.
/// Differentiable once in x, weight and bias; gradients have their dtypes, that of bias is the
/// unquantized sum over rows. Deterministic. No host synchronisation.
/// Source: docs/numerics.md, section 5.
at::Tensor quantize_then_linear(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias, const Config& config);

}  // namespace moe8
