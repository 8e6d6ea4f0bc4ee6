// SPDX-License-Identifier: BSD-3-Clause
// Patterns of re: keys. Input: a pattern, a line end, a name.
#include "convert/pattern.h"
#include "fuzz/refusal.h"

namespace moe8 {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  fuzz::FuzzInput input(bytes, size);
  const std::string text = input.text_until('\n');
  const std::string name = input.rest();
  fuzz::accepts([&] {
    const Pattern pattern(text);
    const bool found = pattern.matches(name);
    fuzz::require(pattern.matches(name) == found, "a pattern matches the same way twice");
  });
  return 0;
}

}  // namespace moe8
