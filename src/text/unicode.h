// SPDX-License-Identifier: BSD-3-Clause
// What Unicode says of code points, and its normalization forms: utf8proc's tables, asked in the
// words of tokenizer.json. No Torch.
#pragma once

#include <bitset>
#include <string>
#include <string_view>

namespace moe8 {

bool is_whitespace(char32_t c);   // the property White_Space
bool is_numeric(char32_t c);      // categories Nd, Nl, No
bool is_punctuation(char32_t c);  // categories P*, and all of ASCII's, symbols too
bool is_mark(char32_t c);         // categories M*
/// Categories Cc, Cf, Cn and Co, but not tab, line feed and carriage return.
bool is_control(char32_t c);
/// Full lower case without context, as Rust's char::to_lowercase.
void append_lower(std::string& text, char32_t c);

enum class NormalForm { NFC, NFD, NFKC, NFKD };

/// Unicode normalization that looks at most text without touching it: only the runs of code points
/// that may change go through utf8proc.
class Normalization {
 public:
  explicit Normalization(NormalForm form);

  /// True when `text` (valid UTF-8) changes; then `out` is the result.
  /// @throws c10::Error when memory runs out.
  bool apply(std::string_view text, std::string& out) const;

  /// The one of each form; made at the first call.
  static const Normalization& of(NormalForm form);

 private:
  // Code points beyond neither change nor combine.
  static constexpr char32_t kLimit = 0x30000;

  bool may_change(char32_t c) const { return c < kLimit && may_change_[c]; }
  void normalize_run(std::string_view run, std::string& out) const;

  int options_;
  std::bitset<kLimit> may_change_;  // alone, or by what stands before it
};

}  // namespace moe8
