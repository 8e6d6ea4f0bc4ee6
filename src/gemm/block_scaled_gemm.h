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

namespace moe8 {

/// Where tokens lie when the rows of each group are padded to a multiple of 128. All of it is
/// computed on the device of offs; sizes follow from shapes alone.
struct PaddedTokens {
  at::Tensor ends;       // int32 [E], cumulative, multiples of 128
  at::Tensor source;     // int64 [P]: the token in a padded row; 0 where there is none
  at::Tensor is_token;   // bool [P]
  at::Tensor position;   // int64 [M]: the padded row of a token; 0 for those past the last group
  at::Tensor has_group;  // bool [M]
};

/// @param offs    [E >= 1] int32 end rows, non-decreasing, the last at most `tokens`.
/// @param tokens  M >= 1. P is M + 127 E rounded up to a multiple of 128.
PaddedTokens pad_tokens(const at::Tensor& offs, int64_t tokens);

/// The arguments of at::_scaled_grouped_mm. C is the contracted size, P padded tokens.
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

/// As GemmKernel asks. The first question on a GPU of compute capability 10 multiplies two small
/// groups, compares the result, and remembers the answer for the life of the process; it refuses
/// while a graph is being captured. On others the call is never made: on 9.0 it kills the context.
std::optional<std::string> block_scaled_refusal(const GemmProblem& problem);
at::Tensor block_scaled_gemm(const GemmProblem& problem);

}  // namespace moe8
