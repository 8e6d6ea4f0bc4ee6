// SPDX-License-Identifier: BSD-3-Clause
// The three GEMMs of a grouped product written to be read: float64 accumulation of the operands'
// values.
#pragma once

#include <cstdint>

namespace moe8::reference {

/// Row-major operands; group e has the rows [ends[e-1], ends[e]).
struct GroupedGemmArgs {
  const float* left;    // out: A [M, K]        grad_input: dO [M, N]      grad_weight: dO [M, N]
  const float* right;   // out: W [E, N, K]     grad_input: W [E, N, K]    grad_weight: A [M, K]
  const int32_t* ends;  // [E]
  int64_t M, N, K, E;
  double* out;  // out: [M, N]          grad_input: [M, K]         grad_weight: [E, N, K]
};

/// out[m, n] = sum_k A[m, k] W[e(m), n, k]; rows in no group are 0.
void grouped_gemm_out(const GroupedGemmArgs& args);
/// grad_A[m, k] = sum_n dO[m, n] W[e(m), n, k]; rows in no group are 0.
void grouped_gemm_grad_input(const GroupedGemmArgs& args);
/// grad_W[e, n, k] = sum over the rows m of group e of dO[m, n] A[m, k]; 0 for an empty group.
void grouped_gemm_grad_weight(const GroupedGemmArgs& args);

}  // namespace moe8::reference
