// SPDX-License-Identifier: BSD-3-Clause
#include "text/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace moe8 {
namespace {

struct Sequence {
  size_t length;  // of what is valid, or of the longest beginning of something valid, 1 at least
  bool valid;
};

// What may follow a lead byte: how many bytes, and the range of the first of them.
struct Follow {
  size_t count;
  unsigned char low, high;
};

Follow follow_of(unsigned char lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};  // above: surrogates
  if (lead >= 0xE1 && lead <= 0xEF) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

Sequence sequence_at(std::string_view bytes, size_t at) {
  const auto lead = static_cast<unsigned char>(bytes[at]);
  if (lead < 0x80) return {1, true};
  Follow follow = follow_of(lead);
  if (follow.count == 0) return {1, false};
  for (size_t i = 1; i <= follow.count; ++i) {
    if (at + i == bytes.size()) return {i, false};
    const auto byte = static_cast<unsigned char>(bytes[at + i]);
    if (byte < follow.low || byte > follow.high) return {i, false};
    follow.low = 0x80;
    follow.high = 0xBF;
  }
  return {follow.count + 1, true};
}

bool eight_are_ascii(const char* at) {
  uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  return (word & 0x8080808080808080U) == 0;
}

}  // namespace

void append_utf8(std::string& text, char32_t value) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (value < 0x80) return put(value);
  if (value < 0x800) {
    put(0xC0U | value >> 6U);
  } else {
    if (value < 0x10000) {
      put(0xE0U | value >> 12U);
    } else {
      put(0xF0U | value >> 18U);
      put(0x80U | (value >> 12U & 0x3FU));
    }
    put(0x80U | (value >> 6U & 0x3FU));
  }
  put(0x80U | (value & 0x3FU));
}

size_t valid_utf8_prefix(std::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    if (bytes.size() - at >= 8 && eight_are_ascii(bytes.data() + at)) {
      at += 8;
      continue;
    }
    const Sequence sequence = sequence_at(bytes, at);
    if (!sequence.valid) return at;
    at += sequence.length;
  }
  return at;
}

std::string to_valid_utf8(std::string_view bytes, size_t& replaced) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t valid = valid_utf8_prefix(bytes);
    text += bytes.substr(0, valid);
    if (valid == bytes.size()) break;
    text += "\xEF\xBF\xBD";
    ++replaced;
    bytes.remove_prefix(valid + sequence_at(bytes, valid).length);
  }
  return text;
}

}  // namespace moe8
