// SPDX-License-Identifier: BSD-3-Clause
// What tokenizer.json does to tokens to make text of them again: one object per kind. No Torch.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "text/pre_tokenizer.h"
#include "text/split.h"

namespace moe8 {

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void apply(std::vector<std::string>& tokens) const = 0;
};

using Decoders = std::vector<std::unique_ptr<Decoder>>;

/// The bytes behind letters, of all tokens as one text; U+FFFD for what is no UTF-8.
std::unique_ptr<Decoder> letters_to_bytes();
/// Runs of <0xNN> as the text that they spell, or as many U+FFFD.
std::unique_ptr<Decoder> spelled_bytes();
std::unique_ptr<Decoder> fuse();
std::unique_ptr<Decoder> replace_in_tokens(std::unique_ptr<Finder> finder, std::string content);
/// Up to `start` of the character at the front of each token, and up to `stop` at its end.
std::unique_ptr<Decoder> strip_character(std::string character, size_t start, size_t stop);
std::unique_ptr<Decoder> spaces_of(std::string replacement, PrependScheme scheme);
/// The mark of a word's end: a space, nothing in the last token.
std::unique_ptr<Decoder> word_ends(std::string suffix);

}  // namespace moe8
