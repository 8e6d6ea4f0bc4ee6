// SPDX-License-Identifier: BSD-3-Clause
// GEMMs by the kernels of src/cuda/gemm/. In a build without CUDA there are none, and each refuses.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "gemm/low_precision_gemm.h"

namespace moe8 {

/// FP8 codes by src/cuda/gemm/, the right operand E4M3: Hopper; any groups.
std::optional<std::string> cuda_fp8_refusal(const GemmProblem& problem);
at::Tensor cuda_fp8_gemm(const GemmProblem& problem);
void cuda_fp8_add(const GemmProblem& problem, const at::Tensor& sum);

/// Values in bf16 by src/cuda/gemm/, exact operands, accumulated in float32: Hopper; any groups.
std::optional<std::string> cuda_bf16_refusal(const GemmProblem& problem);
at::Tensor cuda_bf16_gemm(const GemmProblem& problem);
void cuda_bf16_add(const GemmProblem& problem, const at::Tensor& sum);

}  // namespace moe8
