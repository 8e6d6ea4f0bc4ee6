// SPDX-License-Identifier: BSD-3-Clause
// Tokens on their way to the ranks of their experts, written to be read: the definition that the
// kernels of src/cuda/experts/exchange.h equal.
#pragma once

#include <cstdint>
#include <vector>

namespace moe8::reference {

struct RanksOfTokens {
  std::vector<int32_t> of_tokens;  // [tokens, min(top_k, ranks)]
  std::vector<int32_t> choices;    // [ranks]
};

/// The ranks of each token's experts, ascending and each once, then -1; and how many choices fall on
/// each rank. Rank r has the experts [r, r + 1) * own_experts.
RanksOfTokens ranks_of_tokens(const std::vector<int64_t>& experts, int64_t top_k, int64_t ranks,
                              int64_t own_experts);

/// What goes with tokens beside their data.
struct Beside {
  std::vector<int32_t> experts;  // [rows, top_k]
  std::vector<float> scores;     // [rows, top_k], or none
  std::vector<uint32_t> scale;   // [rows, words of it], or none
};

/// Row by row: experts, scores, scale.
std::vector<uint32_t> pack_beside(const Beside& tokens, int64_t top_k,
                                  const std::vector<int32_t>& token_of_row);

/// As the rank sees it that has own_experts from first_expert on.
Beside unpack_beside(const std::vector<uint32_t>& rows, int64_t top_k, bool has_scores,
                     int64_t scale_words, int64_t first_expert, int64_t own_experts);

}  // namespace moe8::reference
