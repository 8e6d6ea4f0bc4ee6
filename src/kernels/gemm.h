// SPDX-License-Identifier: BSD-3-Clause
// The three products of a (grouped) linear layer. No Torch.
#pragma once

namespace moe8 {

enum class Gemm {
  OUT,          // left A  [M, K], right W [E, N, K], contracts K:  [M, N]
  GRAD_INPUT,   // left dO [M, N], right W [E, N, K], contracts N:  [M, K]
  GRAD_WEIGHT,  // left dO [M, N], right A [M, K], contracts the rows of each group: [E, N, K]
};

/// "out", "grad_input", "grad_weight"
constexpr const char* to_string(Gemm gemm) {
  switch (gemm) {
    case Gemm::OUT:
      return "out";
    case Gemm::GRAD_INPUT:
      return "grad_input";
    case Gemm::GRAD_WEIGHT:
      return "grad_weight";
  }
  return "invalid";
}

}  // namespace moe8
