// SPDX-License-Identifier: BSD-3-Clause
// TOML beyond ASCII: what is refused, by its message, and what keeps its meaning.
#include "convert/toml_text.h"

#include "convert/toml_input.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

std::string value(const std::string& text) {
  return parse_toml("test", text, "t.toml")["a"].value_or<std::string>("no string");
}
std::string message(const std::string& text) {
  return error_of([&] { parse_toml("test", text, "t.toml"); });
}

TEST(TomlText, IsLeftAloneWhereItIsSafe) {
  for (const std::string& text : std::vector<std::string>{
           "", "# ü\na = \"é\" # é\n", "a = 'é\\' # é", "a = \"\"\"é\"é\"\"\"\"\" # é",
           "\"é\" = '''é'''", std::string("\xEF\xBB\xBF") + "a = 1", "a = \"\"\"x\\\n  y\"\"\"",
           "a = \"\\\"é\""}) {
    EXPECT_EQ(toml_text("test", text, "t.toml"), text);
  }
}

TEST(TomlText, KeepsItsMeaningAfterALineEndingBackslash) {
  EXPECT_EQ(value("a = \"\"\"x\\\n  é y\"\"\""), "xé y");
  EXPECT_EQ(value("a = \"\"\"x\\  \r\n\n\té  y\"\"\""), "xé  y");
  EXPECT_EQ(value("a = \"\"\"\\\n€\"\"\""), "€");
  EXPECT_EQ(value("a = \"\"\"\\\n𝄞\"\"\""), "𝄞");
  EXPECT_EQ(toml_text("test", "a = \"\"\"\\\n€\"\"\"", "t.toml"),
            "a = \"\"\"\\\n\\U000020AC\"\"\"");
}

TEST(TomlText, IsRefusedOutsideStringsWithItsLine) {
  EXPECT_THAT(message("a = 1\né = 2"),
              HasSubstr("[test] t.toml:2: expected valid TOML, got a character beyond ASCII "
                        "outside strings and comments. Put quotes around it."));
  EXPECT_THAT(message("a = é"), HasSubstr("outside strings"));
  EXPECT_THAT(message("a = \"\"\"x\"\"\"\"\"é"), HasSubstr("outside strings"));
  EXPECT_THAT(message("a = \"\\é\""), HasSubstr("after a backslash"));
  EXPECT_THAT(message("a = \"\"\"\n\\é\"\"\""), HasSubstr("t.toml:2: "));
}

TEST(TomlText, WhatIsNotUtf8IsRefusedWhereverItStands) {
  for (const std::string bytes : {"\xC3", "\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF5\x80\x80\x80"}) {
    EXPECT_THAT(message("a = \"" + bytes + "\""), HasSubstr("expected valid TOML"));
    EXPECT_THAT(message("a = \"\"\"\\\n" + bytes + "\"\"\""), HasSubstr("expected valid TOML"));
  }
}

TEST(TomlText, StringsWithoutAnEndAreRefused) {
  for (const std::string text :
       {"a = \"é", "a = 'é\né = 1", "a = \"\"\"é", "a = \"\\", "a = \"\"\"\\\n"}) {
    EXPECT_THAT(message(text), HasSubstr("expected valid TOML"));
  }
}

}  // namespace
}  // namespace moe8
