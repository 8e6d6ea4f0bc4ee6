// SPDX-License-Identifier: BSD-3-Clause
#include "convert/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>

#include "base/check.h"

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
  TORCH_CHECK(context, "out of memory");
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  return context;
}

PCRE2_SPTR bytes(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

Pattern::Pattern(std::string_view text) : text_(text) {
  int error = 0;
  PCRE2_SIZE position = 0;
  code_.reset(pcre2_compile(bytes(text), text.size(), kCompileOptions, &error, &position, nullptr));
  MOE8_CHECK(code_ != nullptr, "FqnToConfig", c10::str("key 're:", text, "'"),
             "expected a Perl-compatible pattern, got an error at position ", position, " of '",
             text, "': ", error_text(error));
}

bool Pattern::matches(std::string_view name) const {
  static const MatchContext limits = make_limits();
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  TORCH_CHECK(data, "out of memory");
  const int result =
      pcre2_match(code_.get(), bytes(name), name.size(), 0, 0, data.get(), limits.get());
  MOE8_CHECK(result >= 0 || result == PCRE2_ERROR_NOMATCH, "FqnToConfig",
             c10::str("key 're:", text_, "'"), "expected a pattern that is quick to match, got '",
             error_text(result), "' on the name '", name,
             "'. Nested repetitions such as (a+)+ try exponentially many ways; use (a+) or the "
             "possessive (a+)++.");
  return result >= 0;
}

void Pattern::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

}  // namespace moe8
