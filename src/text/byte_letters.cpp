// SPDX-License-Identifier: BSD-3-Clause
#include "text/byte_letters.h"

#include "text/utf8.h"

namespace moe8 {
namespace {

constexpr char32_t kLetterLimit = 0x180;

// The byte plus one; 0: stands for none.
constexpr std::array<uint16_t, kLetterLimit> kBytesOfLetters = [] {
  std::array<uint16_t, kLetterLimit> bytes{};
  for (uint16_t byte = 0; byte < 256; ++byte) bytes[kByteLetters[byte]] = byte + 1;
  return bytes;
}();

}  // namespace

std::optional<uint8_t> byte_of_letter(char32_t letter) {
  if (letter >= kLetterLimit || kBytesOfLetters[letter] == 0) return std::nullopt;
  return static_cast<uint8_t>(kBytesOfLetters[letter] - 1);
}

void append_as_letters(std::string& letters, std::string_view bytes) {
  for (const char c : bytes) append_utf8(letters, kByteLetters[static_cast<unsigned char>(c)]);
}

std::optional<std::string> bytes_of_letters(std::string_view letters) {
  std::string bytes;
  for (size_t at = 0; at < letters.size();) {
    const CodePoint point = code_point_at(letters, at);
    const std::optional<uint8_t> byte = byte_of_letter(point.value);
    if (!byte) return std::nullopt;
    bytes += static_cast<char>(*byte);
    at += point.length;
  }
  return bytes;
}

}  // namespace moe8
