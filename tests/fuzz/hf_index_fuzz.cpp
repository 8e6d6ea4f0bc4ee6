// SPDX-License-Identifier: BSD-3-Clause
// model.safetensors.index.json of published models. Input: the text. What is read names files beside the
// index, and is read the same when it is written again.
#include <nlohmann/json.hpp>

#include "fuzz/refusal.h"
#include "models/hf_index.h"

namespace moe8 {

using Map = std::map<std::string, std::string>;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string text(bytes, bytes + size);
  Map map;
  if (!fuzz::accepts([&] { map = parse_weight_map(text, "index"); })) return 0;
  for (const auto& [tensor, file] : map) {
    fuzz::require(!file.empty() && file != "." && file != "..", "a file has a name");
    fuzz::require(file.find('/') == std::string::npos, "a file lies beside the index");
    fuzz::require(std::ranges::none_of(file, [](unsigned char c) { return c < ' ' || c == 0x7f; }),
                  "a file's name can be printed");
  }
  const nlohmann::json again{{"weight_map", map}};
  fuzz::require(parse_weight_map(again.dump(), "index") == map, "written again it is the same");
  return 0;
}

}  // namespace moe8
