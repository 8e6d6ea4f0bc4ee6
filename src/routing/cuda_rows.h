// SPDX-License-Identifier: BSD-3-Clause
// Orders of rows, and rows by expert, by the kernels of src/cuda/experts/. What they compute is said
// in moe8/routing.h and routing/rows.h; in a build without CUDA none of these is ever chosen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "moe8/routing.h"

namespace moe8 {

/// Nothing when the kernels take it, else why LibTorch's operations do.
std::optional<std::string> cuda_order_refusal(const at::Tensor& experts, int64_t n_experts);
std::optional<std::string> cuda_rows_refusal(const at::Tensor& rows, const ExpertOrder& order);

/// @param experts  [T, k], checked
ExpertOrder cuda_expert_order(const at::Tensor& experts, int64_t n_experts);

/// [R, N] of x's dtype; zeros for rows in no group.
at::Tensor cuda_gather_tokens(const at::Tensor& x, const ExpertOrder& order);

/// sum_rows_into(). @param bias  bf16 or float32, or undefined
void cuda_sum_rows_into(const at::Tensor& rows, const ExpertOrder& order, const at::Tensor& scores,
                        const at::Tensor& bias, int64_t first_token, const at::Tensor& out);

}  // namespace moe8
