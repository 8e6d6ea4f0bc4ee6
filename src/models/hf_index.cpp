// SPDX-License-Identifier: BSD-3-Clause
#include "models/hf_index.h"

#include <algorithm>

#include "io/safetensors_header.h"
#include "models/config_json.h"

namespace moe8 {
namespace {

// Joined to the folder's path and printed as it is.
bool is_plain_file_name(const std::string& name) {
  constexpr size_t kLongest = 255;  // of Linux' file systems
  return !name.empty() && name.size() <= kLongest && name != "." && name != ".." &&
         std::ranges::none_of(name, [](char c) {
           return c == '/' || static_cast<unsigned char>(c) < ' ' || c == '\x7f';
         });
}

}  // namespace

std::map<std::string, std::string> parse_weight_map(std::string_view text,
                                                    const std::string& where) {
  const OrderedJson json = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto found = json.is_object() ? json.find("weight_map") : json.end();
  MOE8_CHECK(found != json.end() && found->is_object(), kPretrained, where,
             "expected an object with a weight_map");
  std::map<std::string, std::string> map;
  for (const auto& [name, file] : found->items()) {
    MOE8_CHECK(file.is_string() && is_plain_file_name(file.template get<std::string>()),
               kPretrained, where, "tensor ", shown(name),
               ": expected the name of a file beside the index, got ", dumped(file));
    map.emplace(name, file.template get<std::string>());
  }
  return map;
}

}  // namespace moe8
