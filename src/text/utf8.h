// SPDX-License-Identifier: BSD-3-Clause
// UTF-8: code points one after the other, and what strangers' bytes need to become valid. No Torch.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moe8 {

struct CodePoint {
  char32_t value;
  size_t length;  // bytes
};

/// The code point that begins at text[at], of text that is valid.
inline CodePoint code_point_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const auto low = [&](size_t i) { return static_cast<char32_t>(byte(i) & 0x3FU); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1FU) << 6U | low(1), 2};
  if (lead < 0xF0) return {(lead & 0x0FU) << 12U | low(1) << 6U | low(2), 3};
  return {(lead & 0x07U) << 18U | low(1) << 12U | low(2) << 6U | low(3), 4};
}

/// Calls take(CodePoint, position) for every code point of valid text.
template <typename Take>
void for_each_code_point(std::string_view text, const Take& take) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    take(point, at);
    at += point.length;
  }
}

void append_utf8(std::string& text, char32_t value);

/// How many bytes from the front are valid UTF-8 (no surrogates, nothing longer than needed).
size_t valid_utf8_prefix(std::string_view bytes);

/// The bytes with U+FFFD in place of what is no UTF-8: one for every maximal part of a sequence, as
/// Unicode recommends and as Python's errors="replace" and Rust's from_utf8_lossy do it.
/// `replaced` grows by the number of these.
std::string to_valid_utf8(std::string_view bytes, size_t& replaced);

}  // namespace moe8
