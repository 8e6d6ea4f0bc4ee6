// SPDX-License-Identifier: BSD-3-Clause
// JSON in messages: what dump() writes while it is short, and an end to what is deep or long.
#include "base/shown_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace moe8 {
namespace {

using nlohmann::ordered_json;

std::string shown(const std::string& text) {
  return shown_json(ordered_json::parse(text));
}

TEST(ShownJson, IsWhatDumpWrites) {
  for (const char* text :
       {"null", "-5", "0.1", "\"a\\u001b\\u007f\\u00e9\"", "[]", "{}", "[1,[2,{\"b\":[]}],true]",
        "{\"z\":{\"a\\n\":\"b\"},\"y\":[null]}", "[[[[[[]]]]]]"}) {
    const ordered_json json = ordered_json::parse(text);
    EXPECT_EQ(shown_json(json), json.dump(-1, ' ', /*ensure_ascii=*/true)) << text;
  }
  EXPECT_EQ(shown_json(ordered_json("\xFF")), "\"\\ufffd\"");
}

// nlohmann's parser and destructor count levels in memory of their own; its dump() on the stack.
TEST(ShownJson, EndsWhereBracketsDoNot) {
  const std::string open(1'000'000, '['), close(1'000'000, ']');
  EXPECT_EQ(shown(open + close), "[[[[[[[...]]]]]]]");
  EXPECT_EQ(shown("{\"a\":" + open + close + "}"), "{\"a\":[[[[[[...]]]]]]}");
  EXPECT_EQ(shown("[[[[[[[5]]]]]]]"), "[[[[[[[...]]]]]]]");
}

TEST(ShownJson, EndsAfterAFewHundredBytes) {
  EXPECT_EQ(shown("\"" + std::string(1000, 'x') + "\""), "\"" + std::string(399, 'x') + "...");
  std::string list = "[0";
  for (int i = 1; i < 100'000; ++i) list += ",0";
  const std::string got = shown(list + "]");
  EXPECT_EQ(got.size(), 403U);
  EXPECT_EQ(got.substr(0, 5), "[0,0,");
  EXPECT_EQ(got.substr(400), "...");
}

}  // namespace
}  // namespace moe8
