// SPDX-License-Identifier: BSD-3-Clause
// JSON of files as it may stand in a message. nlohmann's dump() calls itself for every level: of text
// that is nothing but a hundred thousand brackets it overflows the stack.
#pragma once

#include <cstddef>
#include <string>

namespace moe8 {
namespace shown_json_parts {

constexpr size_t kLongest = 400;  // bytes
constexpr int kDeepest = 6;       // levels of arrays and objects

template <typename Json>
std::string scalar(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

// Adds no more once `text` is too long.
template <typename Json>
void add(const Json& value, int levels, std::string& text) {
  if (text.size() > kLongest) return;
  if (!value.is_structured()) {
    text += scalar(value);
    return;
  }
  const bool is_object = value.is_object();
  text += is_object ? '{' : '[';
  if (levels == 0 && !value.empty()) {
    text += "...";
  } else {
    const char* between = "";
    for (auto item = value.begin(); item != value.end() && text.size() <= kLongest; ++item) {
      text += between;
      if (is_object) text += scalar(Json(item.key())) + ':';
      add(*item, levels - 1, text);
      between = ",";
    }
  }
  text += is_object ? '}' : ']';
}

}  // namespace shown_json_parts

/// As dump() writes it, in ASCII: bytes that are no UTF-8 are replaced. What lies deeper than six levels
/// is "...", and so is what follows the first 400 bytes.
template <typename Json>
std::string shown_json(const Json& value) {
  std::string text;
  shown_json_parts::add(value, shown_json_parts::kDeepest, text);
  if (text.size() <= shown_json_parts::kLongest) return text;
  return text.substr(0, shown_json_parts::kLongest) + "...";
}

}  // namespace moe8
