// SPDX-License-Identifier: BSD-3-Clause
// tokenizer.json, from text to the parts that a tokenizer is made of. What moe8 does not know is
// refused by name. No Torch.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"

namespace moe8 {

struct TokenizerParts {
  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  BpeParts model;
  std::vector<AddedToken> added_tokens;
  Decoders decoders;
  bool has_decoder = false;
  // What the post-processor puts around a text: names of tokens with their ids.
  std::vector<uint32_t> before, after;
};

/// @throws c10::Error "[tokenizer] where: KEY: expected ..., got ...".
TokenizerParts parse_tokenizer_json(std::string_view text, const std::string& where);

}  // namespace moe8
