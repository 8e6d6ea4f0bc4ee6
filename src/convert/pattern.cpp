// SPDX-License-Identifier: BSD-3-Clause
#include "convert/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>

#include "base/check.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

// A name has some dozens of characters: an honest pattern needs a few thousand steps. A million
// steps take about 10 ms, so a bad pattern ends at once instead of hanging the program.
constexpr uint32_t kMatchLimit = 1'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

// PCRE2_MATCH_INVALID_UTF: the names of a checkpoint may hold any bytes; that is no error.
constexpr uint32_t kCompileOptions = PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF |
                                     PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C;

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

using MatchContext = std::unique_ptr<pcre2_match_context, FreeMatchContext>;

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

MatchContext make_limits() {
  MatchContext context(pcre2_match_context_create(nullptr));
  MOE8_CHECK(context, "Pattern", "", "out of memory");
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  return context;
}

// ---- words ------------------------------------------------------------------
bool is_word_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c < 0;
}

// Behind the bracket expression or the group that begins at `at`.
size_t end_of_class(std::string_view text, size_t at) {
  for (size_t i = at + 1; i < text.size(); ++i) {
    if (text[i] == '\\')
      ++i;
    else if (text[i] == ']' && i > at + 1)
      return i + 1;
  }
  return text.size();
}
size_t end_of_group(std::string_view text, size_t at) {
  int depth = 0;
  for (size_t i = at; i < text.size(); ++i) {
    if (text[i] == '\\')
      ++i;
    else if (text[i] == '(')
      ++depth;
    else if (text[i] == ')' && --depth == 0)
      return i + 1;
  }
  return text.size();
}

bool begins_look_around(std::string_view text) {
  constexpr std::array<std::string_view, 4> kStarts{"(?=", "(?!", "(?<=", "(?<!"};
  return std::ranges::any_of(kStarts,
                             [&](std::string_view start) { return text.starts_with(start); });
}

PCRE2_SPTR bytes(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

Pattern::Pattern(std::string_view text) : text_(text) {
  int error = 0;
  PCRE2_SIZE position = 0;
  code_.reset(pcre2_compile(bytes(text), text.size(), kCompileOptions, &error, &position, nullptr));
  MOE8_CHECK(code_ != nullptr, "FqnToConfig", concat("key 're:", text, "'"),
             "expected a Perl-compatible pattern, got an error at position ", position, " of '",
             text, "': ", error_text(error));
}

bool Pattern::matches(std::string_view name) const {
  static const MatchContext limits = make_limits();
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  MOE8_CHECK(data, "Pattern", "", "out of memory");
  const int result =
      pcre2_match(code_.get(), bytes(name), name.size(), 0, 0, data.get(), limits.get());
  MOE8_CHECK(result >= 0 || result == PCRE2_ERROR_NOMATCH, "FqnToConfig",
             concat("key 're:", text_, "'"), "expected a pattern that is quick to match, got '",
             error_text(result), "' on the name '", name,
             "'. Nested repetitions such as (a+)+ try exponentially many ways; use (a+) or the "
             "possessive (a+)++.");
  return result >= 0;
}

std::vector<std::string> Pattern::words() const {
  std::vector<std::string> words;
  std::string word;
  const auto finish = [&] {
    if (word.size() >= 2) words.push_back(word);
    word.clear();
  };
  const std::string_view text = text_;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (is_word_character(c)) {
      word += c;
      ++i;
      continue;
    }
    const bool is_optional = c == '*' || c == '?' || c == '{';
    if (is_optional && !word.empty()) word.pop_back();  // it may be missing
    finish();
    if (c == '\\') {
      i += 2;
    } else if (c == '[') {
      i = end_of_class(text, i);
    } else if (begins_look_around(text.substr(i))) {
      i = end_of_group(text, i);
    } else if (c == '{') {
      i = std::min(text.find('}', i), text.size() - 1) + 1;
    } else if (text.substr(i).starts_with("(?")) {
      i = std::min(text.find_first_of(":>)", i), text.size() - 1) + 1;  // (?i), (?:, (?<name>
    } else {
      ++i;
    }
  }
  finish();
  return words;
}

void Pattern::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

}  // namespace moe8
