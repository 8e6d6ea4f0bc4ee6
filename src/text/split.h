// SPDX-License-Identifier: BSD-3-Clause
// Cutting a text at what is found in it, in the five ways of tokenizer.json. No Torch.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "text/regex.h"
#include "text/utf8.h"

namespace moe8 {

/// What is looked for: a pattern, a text, characters of a kind.
class Finder {
 public:
  virtual ~Finder() = default;
  /// The first match that begins at `from` or later, in valid UTF-8.
  virtual bool find(std::string_view text, size_t from, Match& match) const = 0;
};

std::unique_ptr<Finder> find_pattern(std::string_view pattern, const std::string& where);
std::unique_ptr<Finder> find_text(std::string text);
std::unique_ptr<Finder> find_characters(bool (*is_one)(char32_t));

/// Calls take(begin, end, matched) for every part of `text`, matches and what lies between them. No
/// empty match follows another match directly.
template <typename Take>
void for_each_part(const Finder& finder, std::string_view text, const Take& take) {
  size_t done = 0;        // behind the last match
  size_t from = 0;        // where the search goes on
  bool at_match = false;  // a match ends at `from`
  for (Match match{}; from <= text.size() && finder.find(text, from, match);) {
    if (match.begin == match.end) {
      const bool again = at_match && match.end == done;
      from = match.end + (match.end < text.size() ? code_point_at(text, match.end).length : 1);
      if (again) {
        at_match = false;
        continue;
      }
    } else {
      from = match.end;
    }
    if (done < match.begin) take(done, match.begin, false);
    take(match.begin, match.end, true);
    done = match.end;
    at_match = true;
  }
  if (done < text.size()) take(done, text.size(), false);
}

enum class SplitBehavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

/// Calls take(piece) for the pieces, none of them empty. With `invert` what lies between matches is
/// the delimiter.
template <typename Take>
void split_text(const Finder& finder, std::string_view text, SplitBehavior behavior, bool invert,
                const Take& take) {
  struct Part {
    size_t begin, end;
    bool matched;
  };
  Part held{0, 0, false};
  bool holds = false;
  const auto give = [&](size_t begin, size_t end) {
    if (begin < end) take(text.substr(begin, end - begin));
  };
  for_each_part(finder, text, [&](size_t begin, size_t end, bool matched) {
    const Part part{begin, end, matched != invert};
    switch (behavior) {
      case SplitBehavior::REMOVED:
        if (!part.matched) give(begin, end);
        return;
      case SplitBehavior::ISOLATED:
        return give(begin, end);
      default:
        break;
    }
    // The others may join a part with the one before it.
    const bool joins = behavior == SplitBehavior::CONTIGUOUS ? part.matched == held.matched
                       : behavior == SplitBehavior::MERGED_WITH_PREVIOUS
                           ? part.matched && !held.matched
                           : held.matched && !part.matched;
    if (holds && joins) {
      held.end = part.end;
      held.matched = part.matched;
      return;
    }
    if (holds) give(held.begin, held.end);
    held = part;
    holds = true;
  });
  if (holds) give(held.begin, held.end);
}

}  // namespace moe8
