// SPDX-License-Identifier: BSD-3-Clause
// Products in the formats of any config, linear or grouped, in the shapes that LibTorch's
// operations have. What the public functions of linear.h and grouped_mm.h do not cover:
//   - a grouped config for one matrix: a grouped product of one group
//   - a linear config for several matrices: the formats of that config, group by group
//   - the broadcasting of matmul
// All are differentiable as those functions are, and give the bits that those give where both
// apply.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moe8/config.h"

namespace moe8 {

/// y[..., n] = sum_k x[..., k] * weight[n, k], contiguous.
/// @param x       [..., K], any rank >= 1
/// @param weight  [N, K] of x's device
/// Trusts its arguments.
at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const Config& config,
                          at::ScalarType out_dtype);

/// matmul(x, weight), contiguous: batch axes broadcast. Along those that the weight repeats (size 1
/// or stride 0) x has more rows for the same matrix; along the others every matrix of the weight is
/// a group, and the groups have equally many rows.
/// @param x       [..., M, K], not empty
/// @param weight  [..., K, N] of x's device, not empty, batch axes that broadcast with those of x
/// Trusts its arguments. @throws c10::Error when the rows of all groups are more than int32 counts.
at::Tensor matmul_product(const at::Tensor& x, const at::Tensor& weight, const Config& config,
                          at::ScalarType out_dtype);

/// As quantize_then_scaled_grouped_mm, checks included, by any config. With tensorwise scales there
/// is one for all tokens, and one for all experts. `op` begins the messages of errors.
at::Tensor grouped_product(const char* op, const at::Tensor& A, const at::Tensor& B_t,
                           const at::Tensor& offs, const Config& config, at::ScalarType out_dtype,
                           const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace moe8
