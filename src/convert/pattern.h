// SPDX-License-Identifier: BSD-3-Clause
// The patterns of re: keys: PCRE2, matched against whole names. The only file that knows PCRE2 is
// pattern.cpp.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace moe8 {

/// A compiled Perl-compatible pattern. Text is UTF-8; a name that is not matches byte runs that
/// are.
class Pattern {
 public:
  /// @throws c10::Error with the position and the reason when `text` is no pattern.
  explicit Pattern(std::string_view text);

  /// True when the pattern matches all of `name`. Safe to call from several threads.
  /// @throws c10::Error when matching takes too many steps (catastrophic back-tracking).
  bool matches(std::string_view name) const;

  /// The runs of letters, digits and '_' that the text asks for literally, of two characters and
  /// more: "layers", "experts" and "w1" of layers\.\d+\.experts\.w1. What look-arounds hold is left
  /// out. Good enough for messages.
  std::vector<std::string> words() const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };

  std::string text_;
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

}  // namespace moe8
