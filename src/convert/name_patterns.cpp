// SPDX-License-Identifier: BSD-3-Clause
#include "convert/name_patterns.h"

#include <optional>

#include "base/check.h"
#include "base/nearest.h"
#include "convert/pattern.h"

namespace moe8 {

struct NamePatterns::Key {
  std::string text;
  std::optional<Pattern> pattern;  // none: a name
  bool matched = false;
};

NamePatterns::NamePatterns(const char* op, const char* what, const std::vector<std::string>& keys)
    : op_(op), what_(what) {
  constexpr std::string_view kRegex = "re:";
  for (const std::string& text : keys) {
    Key& key = keys_.emplace_back();
    key.text = text;
    if (text.starts_with(kRegex)) key.pattern.emplace(std::string_view(text).substr(kRegex.size()));
  }
}

NamePatterns::~NamePatterns() = default;

const std::string* NamePatterns::find(std::string_view name) {
  seen_.emplace_back(name);
  const std::string* first = nullptr;
  for (Key& key : keys_) {
    const bool matches = key.pattern ? key.pattern->matches(name) : key.text == name;
    if (!matches) continue;
    key.matched = true;
    if (!first) first = &key.text;
  }
  return first;
}

void NamePatterns::check_all_matched() const {
  for (const Key& key : keys_) {
    MOE8_CHECK(key.matched, op_, what_,
               "expected the name of a parameter, or re: and a pattern of "
               "some, got '",
               key.text, "', which names none", did_you_mean(key.text, seen_));
  }
}

}  // namespace moe8
