// SPDX-License-Identifier: BSD-3-Clause
// GEMMs by LibTorch's matrix product on dequantized operands, group by group, in bf16 or in
// float32: every product of a CPU, and of a GPU what no other kernel computes. On a GPU with groups
// the host waits to read offs, which a graph that is being captured cannot: both refuse there.
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

/// Operands whose values are bf16 numbers, products accumulated in float32, rounded once.
std::optional<std::string> torch_bf16_refusal(const GemmProblem& problem);
at::Tensor torch_bf16_gemm(const GemmProblem& problem);

/// Everything that the reference arithmetic defines.
std::optional<std::string> torch_float32_refusal(const GemmProblem& problem);
at::Tensor torch_float32_gemm(const GemmProblem& problem);

}  // namespace moe8
