// SPDX-License-Identifier: BSD-3-Clause
// "Did you mean": the candidates most like a word that matched nothing.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

/// Up to `count` candidates, the fewest edits (Levenshtein distance) first; ties keep their order.
std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates,
                                 size_t count = 3);

/// ". Did you mean 'train'?", to end a message with, for the candidate nearest to `word`; nothing
/// where none is near (two letters may differ, or a third of them).
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

/// "a, b, c"
std::string join(const std::vector<std::string>& words, std::string_view separator = ", ");

}  // namespace moe8
