// SPDX-License-Identifier: BSD-3-Clause
#include "reference/exchange.h"

#include <algorithm>
#include <bit>
#include <set>

namespace moe8::reference {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

int64_t size_of(const auto& x) {
  return static_cast<int64_t>(x.size());
}

}  // namespace

RanksOfTokens ranks_of_tokens(const std::vector<int64_t>& experts, int64_t top_k, int64_t ranks,
                              int64_t own_experts) {
  RanksOfTokens result;
  result.choices.resize(at(ranks));
  for (int64_t first = 0; first < size_of(experts); first += top_k) {
    std::set<int32_t> of_token;
    for (int64_t slot = first; slot < first + top_k; ++slot) {
      const int64_t expert = experts[at(slot)];
      if (expert < 0 || expert >= ranks * own_experts) continue;
      of_token.insert(static_cast<int32_t>(expert / own_experts));
      ++result.choices[at(expert / own_experts)];
    }
    result.of_tokens.insert(result.of_tokens.end(), of_token.begin(), of_token.end());
    const int64_t left = std::min(top_k, ranks) - size_of(of_token);
    result.of_tokens.insert(result.of_tokens.end(), at(left), -1);
  }
  return result;
}

std::vector<uint32_t> pack_beside(const Beside& tokens, int64_t top_k,
                                  const std::vector<int32_t>& token_of_row) {
  const int64_t n = size_of(tokens.experts) / top_k;
  const int64_t scale_words = n > 0 ? size_of(tokens.scale) / n : 0;
  std::vector<uint32_t> rows;
  for (const int32_t token : token_of_row) {
    for (int64_t j = 0; j < top_k; ++j) {
      rows.push_back(static_cast<uint32_t>(tokens.experts[at(token * top_k + j)]));
    }
    for (int64_t j = 0; j < top_k && !tokens.scores.empty(); ++j) {
      rows.push_back(std::bit_cast<uint32_t>(tokens.scores[at(token * top_k + j)]));
    }
    for (int64_t j = 0; j < scale_words; ++j) {
      rows.push_back(tokens.scale[at(token * scale_words + j)]);
    }
  }
  return rows;
}

Beside unpack_beside(const std::vector<uint32_t>& rows, int64_t top_k, bool has_scores,
                     int64_t scale_words, int64_t first_expert, int64_t own_experts) {
  Beside tokens;
  const int64_t words = top_k * (has_scores ? 2 : 1) + scale_words;
  for (int64_t first = 0; first < size_of(rows); first += words) {
    for (int64_t j = 0; j < top_k; ++j) {
      const int64_t local = static_cast<int32_t>(rows[at(first + j)]) - first_expert;
      const bool is_here = local >= 0 && local < own_experts;
      tokens.experts.push_back(is_here ? static_cast<int32_t>(local) : -1);
      if (!has_scores) continue;
      const auto score = std::bit_cast<float>(rows[at(first + top_k + j)]);
      tokens.scores.push_back(is_here ? score : 0.0f);
    }
    for (int64_t j = words - scale_words; j < words; ++j)
      tokens.scale.push_back(rows[at(first + j)]);
  }
  return tokens;
}

}  // namespace moe8::reference
