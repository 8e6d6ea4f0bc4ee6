// SPDX-License-Identifier: BSD-3-Clause
// The patterns of tokenizer.json. They are written for Oniguruma (Ruby's syntax), and run by PCRE2
// with its JIT compiler: what the two read differently is translated or refused. No Torch.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

struct pcre2_real_code_8;

namespace moe8 {

struct Match {
  size_t begin;
  size_t end;
};

/// The pattern as PCRE2 has to read it.
/// @throws c10::Error, "[tokenizer] where: ...", for what cannot be said in PCRE2.
std::string pcre2_pattern(std::string_view oniguruma, const std::string& where);

/// A compiled pattern. Safe to use from several threads.
class Regex {
 public:
  /// @throws c10::Error with the position and the reason when `pattern` is none.
  Regex(std::string_view pattern, const std::string& where);

  /// The first match that begins at `from` or later, in text that is valid UTF-8.
  /// @throws c10::Error when matching takes too many steps (catastrophic back-tracking).
  bool find(std::string_view text, size_t from, Match& match) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };

  std::string where_;
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  bool has_jit_ = false;
};

}  // namespace moe8
