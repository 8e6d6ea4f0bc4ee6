// SPDX-License-Identifier: BSD-3-Clause
// tokenizer.json, and texts. Input: the file up to a NUL byte, then a text.
#include "fuzz/refusal.h"
#include "moe8/tokenizer.h"
#include "text/utf8.h"

namespace moe8 {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  fuzz::FuzzInput input(bytes, size);
  const std::string file = input.text_until('\0');
  const std::string text = input.rest();
  fuzz::accepts([&] {
    const Tokenizer tokenizer = Tokenizer::parse(file);
    const std::vector<uint32_t> ids = tokenizer.encode(text, {.add_special_tokens = true});
    fuzz::require(tokenizer.encode(text, {.add_special_tokens = true}) == ids,
                  "the same tokens twice");
    for (const uint32_t id : ids) {
      fuzz::require(id < tokenizer.vocabulary_size(), "ids lie in the vocabulary");
    }
    const std::string again = tokenizer.decode(ids);
    fuzz::require(valid_utf8_prefix(again) == again.size(), "decoded text is UTF-8");
  });
  return 0;
}

}  // namespace moe8
