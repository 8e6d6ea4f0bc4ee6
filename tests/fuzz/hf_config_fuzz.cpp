// SPDX-License-Identifier: BSD-3-Clause
// config.json of published models. Input: the text. What is read can be counted, and is written again
// or refused.
#include "fuzz/refusal.h"
#include "models/families.h"

namespace moe8 {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const OrderedJson json =
      OrderedJson::parse(bytes, bytes + size, nullptr, /*allow_exceptions=*/false);
  TransformerConfig config;
  if (!fuzz::accepts([&] { config = read_config(json, "config.json"); })) return 0;
  fuzz::accepts([&] { count_parameters(config); });
  fuzz::accepts([&] { write_config(config); });
  return 0;
}

}  // namespace moe8
