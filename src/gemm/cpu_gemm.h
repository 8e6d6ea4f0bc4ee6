// SPDX-License-Identifier: BSD-3-Clause
// GEMMs on a CPU: dequantized operands through LibTorch's matrix product, in bf16 or in float32.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "gemm/low_precision_gemm.h"

namespace moe8 {

/// True when bf16 products are the faster ones on this CPU. The rule: it multiplies bf16 in
/// hardware (avx512_bf16; every CPU with AMX has it too). MOE8_CPU_GEMM=bf16 or float32 overrides
/// it.
bool cpu_prefers_bf16();

/// Exact operands, products accumulated in float32, rounded once to bf16.
std::optional<std::string> cpu_bf16_refusal(const GemmProblem& problem);
at::Tensor cpu_bf16_gemm(const GemmProblem& problem);

/// Everything that the reference arithmetic defines.
std::optional<std::string> cpu_float32_refusal(const GemmProblem& problem);
at::Tensor cpu_float32_gemm(const GemmProblem& problem);

/// The same on a GPU, by LibTorch's float32 products. With groups the host waits to read offs.
std::optional<std::string> torch_float32_refusal(const GemmProblem& problem);

}  // namespace moe8
