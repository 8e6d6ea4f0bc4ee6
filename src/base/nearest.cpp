// SPDX-License-Identifier: BSD-3-Clause
#include "base/nearest.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace moe8 {
namespace {

size_t edits_between(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // row[j]: edits from a[0, i) to b[0, j)
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

}  // namespace

std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates,
                                 size_t count) {
  std::vector<std::pair<size_t, size_t>> ranked;  // (edits, index)
  for (size_t i = 0; i < candidates.size(); ++i) {
    ranked.emplace_back(edits_between(word, candidates[i]), i);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::string> best;
  for (size_t i = 0; i < std::min(count, ranked.size()); ++i) {
    best.push_back(candidates[ranked[i].second]);
  }
  return best;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  const std::vector<std::string> best = nearest(word, candidates, 1);
  if (best.empty()) return "";
  const size_t longer = std::max(word.size(), best.front().size());
  if (edits_between(word, best.front()) > std::max<size_t>(2, longer / 3)) return "";
  return ". Did you mean '" + best.front() + "'?";
}

std::string join(const std::vector<std::string>& words, std::string_view separator) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += separator;
    text += word;
  }
  return text;
}

}  // namespace moe8
