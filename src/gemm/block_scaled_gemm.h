// SPDX-License-Identifier: BSD-3-Clause
// MXFP8 products on Blackwell: at::_scaled_grouped_mm multiplies codes with one scale per 32
// elements in the tensor cores. It wants groups of rows that are padded and scales in blocked
// layouts (moe8/blocked_scales.h); how they come about here is the same on every device, so that
// tests check it without such a GPU. Nobody has run the call itself: docs/decisions/018.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "gemm/low_precision_gemm.h"
#include "groups/padded_tokens.h"

namespace moe8 {

/// The arguments of at::_scaled_grouped_mm. C is the contracted size; P tokens, those of each group
/// padded to a multiple of 128: M + 127 E, rounded up to such a multiple.
///   OUT, GRAD_INPUT  a [P, C], b [E, C, columns], scale_a [P, round_up(C / 32, 4)],
///                    scale_b [E, round_up(columns, 128) * round_up(C / 32, 4)]; gives [P, columns]
///   GRAD_WEIGHT      a [N, P], b [P, K], scale_a [round_up(N, 128), P / 32 + 4 E], scale_b the
///                    same of K; gives [E, N, K]
/// float8_e4m3fn codes, a row-major, b column-major; float8_e8m0fnu scales.
struct BlockScaledCall {
  at::Tensor a, b, scale_a, scale_b;
  PaddedTokens tokens;
};

/// Exact: the codes and scales stand for the very values that the recipe's quantizer gave.
/// @param problem  both operands e4m3 MX; M >= 1, the contracted size of OUT and GRAD_INPUT a
///                 multiple of 32.
BlockScaledCall block_scaled_call(const GemmProblem& problem);

/// The product's result from that of the call: without padding, rows and experts without tokens
/// zero.
at::Tensor block_scaled_result(const GemmProblem& problem, const BlockScaledCall& call,
                               const at::Tensor& padded);

/// As GemmKernel asks. On a GPU of compute capability 10 the call is tried first (gemm/trial.h); on
/// others it is never made: on 9.0 it kills the context.
std::optional<std::string> block_scaled_refusal(const GemmProblem& problem);
at::Tensor block_scaled_gemm(const GemmProblem& problem);

}  // namespace moe8
