// SPDX-License-Identifier: BSD-3-Clause
#include "moe8/score_function.h"

#include <array>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr std::array<std::string_view, 2> kScoreFunctions{"softmax", "sigmoid"};

}  // namespace

std::string_view to_string(ScoreFunction value) {
  return kScoreFunctions.at(static_cast<size_t>(value));
}

ScoreFunction parse_score_function(std::string_view text) {
  for (size_t i = 0; i < kScoreFunctions.size(); ++i) {
    if (kScoreFunctions[i] == text) return static_cast<ScoreFunction>(i);
  }
  fail("ScoreFunction", "name",
       concat("expected one of ", join({kScoreFunctions.begin(), kScoreFunctions.end()}), ", got '",
              text, "'"));
}

}  // namespace moe8
