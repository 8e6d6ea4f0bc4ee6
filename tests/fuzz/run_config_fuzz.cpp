// SPDX-License-Identifier: BSD-3-Clause
// Run configs and overrides. Input: the text; after a zero byte each, overrides
// "section.key=value".
#include "fuzz/refusal.h"
#include "train/config/run_config.h"

namespace moe8 {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  fuzz::FuzzInput input(bytes, size);
  const std::string text = input.text_until('\0');
  std::vector<std::string> overrides;
  while (!input.empty()) overrides.push_back(input.text_until('\0'));
  fuzz::accepts([&] {
    const RunConfig config = parse_run_config(text, "file.toml", overrides);
    fuzz::require(parse_run_config(to_toml(config), "again") == config,
                  "a config can be written and read again");
  });
  return 0;
}

}  // namespace moe8
