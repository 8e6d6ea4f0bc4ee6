// SPDX-License-Identifier: BSD-3-Clause
// The letters that stand for bytes in byte-level vocabularies, as GPT-2 chose them: printable bytes
// of Latin-1 stand for themselves, the others for U+0100 and what follows. No Torch.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moe8 {

/// The code point of each byte.
inline constexpr std::array<char32_t, 256> kByteLetters = [] {
  std::array<char32_t, 256> letters{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    letters[byte] = printable ? byte : next++;
  }
  return letters;
}();

/// The byte that a code point stands for.
std::optional<uint8_t> byte_of_letter(char32_t letter);

/// Every byte as its letter; the bytes of letters, nothing where another code point is among them.
void append_as_letters(std::string& letters, std::string_view bytes);
std::optional<std::string> bytes_of_letters(std::string_view letters);

}  // namespace moe8
