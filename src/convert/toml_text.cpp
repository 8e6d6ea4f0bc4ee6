// SPDX-License-Identifier: BSD-3-Clause
#include "convert/toml_text.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_beyond_ascii(char c) {
  return static_cast<unsigned char>(c) >= 0x80;
}

struct CodePoint {
  uint32_t value;
  size_t bytes;  // 0: not UTF-8
};

CodePoint first_code_point(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t bytes = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  constexpr std::array<uint32_t, 5> kLowest = {0, 0, 0x80, 0x800, 0x10000};
  if (byte(0) < 0xC0 || byte(0) > 0xF4 || text.size() < bytes) return {0, 0};
  uint32_t value = byte(0) & (0x7F >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {0, 0};
    value = value << 6 | (byte(i) & 0x3F);
  }
  const bool is_surrogate = value >= 0xD800 && value <= 0xDFFF;
  if (value < kLowest[bytes] || value > 0x10FFFF || is_surrogate) return {0, 0};
  return {value, bytes};
}

// Walks over the text once and copies it.
class Scanner {
 public:
  Scanner(const char* op, std::string_view text, const std::string& source)
      : op_(op), text_(text), source_(source) {}

  std::string scan() {
    if (text_.starts_with(kByteOrderMark)) copy(kByteOrderMark.size());
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#') {
        copy(std::min(text_.find('\n', at_), text_.size()) - at_);
      } else if (c == '"' || c == '\'') {
        if (!string(c)) break;
      } else {
        check_ascii("outside strings and comments. Put quotes around it");
        copy(1);
      }
    }
    copy(text_.size() - at_);  // after something that toml++ refuses
    return std::move(out_);
  }

 private:
  void copy(size_t bytes) {
    out_ += text_.substr(at_, bytes);
    at_ += bytes;
  }

  void check_ascii(const char* where) const {
    if (!is_beyond_ascii(text_[at_])) return;
    const auto line = 1 + std::count(text_.begin(), text_.begin() + at_, '\n');
    fail(op_, concat(source_, ":", line),
         concat("expected valid TOML, got a character beyond ASCII ", where, "."));
  }

  // Copies a string; false when it does not end.
  bool string(char quote) {
    const std::string three(3, quote);
    const bool is_long = text_.substr(at_).starts_with(three);
    copy(is_long ? 3 : 1);
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '\\' && quote == '"') {
        escape(is_long);
      } else if (is_long && text_.substr(at_).starts_with(three)) {
        copy(3);
        for (int i = 0; i < 2 && at_ < text_.size() && text_[at_] == quote; ++i) copy(1);
        return true;
      } else if (!is_long && (c == quote || c == '\n')) {
        copy(1);
        return c == quote;
      } else {
        copy(1);
      }
    }
    return false;
  }

  void escape(bool is_long) {
    copy(1);
    const size_t rest = text_.find_first_not_of(is_long ? " \t\r\n" : "", at_);
    if (rest == at_ && at_ < text_.size()) {
      check_ascii("after a backslash. Double the backslash, or put the string in single quotes");
      copy(1);
      return;
    }
    copy(std::min(rest, text_.size()) - at_);
    if (at_ == text_.size() || !is_beyond_ascii(text_[at_])) return;
    const CodePoint point = first_code_point(text_.substr(at_));
    if (point.bytes == 0) return;  // toml++ refuses what is not UTF-8
    out_ += formatted("\\U%08X", point.value);
    at_ += point.bytes;
  }

  const char* op_;
  std::string_view text_;
  const std::string& source_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string toml_text(const char* op, const std::string& text, const std::string& source) {
  return Scanner(op, text, source).scan();
}

}  // namespace moe8
