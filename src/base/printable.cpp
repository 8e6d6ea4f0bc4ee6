// SPDX-License-Identifier: BSD-3-Clause
#include "base/printable.h"

namespace moe8 {
namespace {

// Bytes of the control character at `at`, 0 when there is none: ASCII's have one, those from U+0080
// to U+009F two (C2 80 to C2 9F).
size_t control_size(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(at) < 0x20 || byte(at) == 0x7F) return 1;
  if (byte(at) != 0xC2 || at + 1 == text.size()) return 0;
  return byte(at + 1) >= 0x80 && byte(at + 1) < 0xA0 ? 2 : 0;
}

}  // namespace

std::string printable(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string result;
  size_t escaped = 0;  // bytes that the control character still has
  for (size_t i = 0; i < text.size(); ++i) {
    if (escaped == 0) escaped = control_size(text, i);
    if (escaped == 0) {
      result += text[i];
      continue;
    }
    const auto byte = static_cast<unsigned char>(text[i]);
    result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    --escaped;
  }
  return result;
}

}  // namespace moe8
