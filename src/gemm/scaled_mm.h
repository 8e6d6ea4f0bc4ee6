// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes multiplied by LibTorch: at::_scaled_mm and at::_scaled_grouped_mm, on GPUs whose tensor
// cores take them and for which moe8 has no kernel. Where moe8's own tests cannot run, that is any
// GPU but Hopper, the call is tried before it is used (gemm/trial.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "gemm/low_precision_gemm.h"

namespace moe8 {

/// One group; e4m3 and e5m2, scales by rows or of whole tensors; bf16 results.
std::optional<std::string> scaled_mm_refusal(const GemmProblem& problem);
at::Tensor scaled_mm_gemm(const GemmProblem& problem);

/// Groups of rows: OUT and GRAD_INPUT in e4m3, scales by rows, bf16 results. In GRAD_WEIGHT the
/// call takes no expert without tokens: it ends the CUDA context.
std::optional<std::string> scaled_grouped_mm_refusal(const GemmProblem& problem);
at::Tensor scaled_grouped_mm_gemm(const GemmProblem& problem);

}  // namespace moe8
