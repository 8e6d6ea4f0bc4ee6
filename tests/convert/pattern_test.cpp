// SPDX-License-Identifier: BSD-3-Clause
#include "convert/pattern.h"

#include <chrono>
#include <string>

#include "testing/compare.h"

namespace moe8 {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

TEST(Pattern, MatchesWholeNames) {
  const Pattern pattern("experts");
  EXPECT_TRUE(pattern.matches("experts"));
  EXPECT_FALSE(pattern.matches("layers.experts"));
  EXPECT_FALSE(pattern.matches("experts.w1"));
  EXPECT_FALSE(pattern.matches("experts\n"));
  // Every alternative is held to the whole name, not only the first and the last.
  EXPECT_FALSE(Pattern("a|b|c").matches("bx"));
  EXPECT_FALSE(Pattern("a|b|c").matches("xb"));
  EXPECT_TRUE(Pattern("a|ab").matches("ab"));
}

TEST(Pattern, AllowsRedundantAnchors) {
  const Pattern pattern("^(pre_moe|post_moe)$");
  EXPECT_TRUE(pattern.matches("pre_moe"));
  EXPECT_TRUE(pattern.matches("post_moe"));
  EXPECT_FALSE(pattern.matches("pre_moe.weight"));
}

TEST(Pattern, SpeaksPerl) {
  EXPECT_TRUE(Pattern("(?!.*shared).*experts.*").matches("moe.experts.w1"));
  EXPECT_FALSE(Pattern("(?!.*shared).*experts.*").matches("moe.shared_experts.0"));
  EXPECT_TRUE(Pattern("(?i)LAYERS").matches("layers"));
  EXPECT_TRUE(Pattern(R"((?P<n>\d+)\.(?P=n))").matches("17.17"));
  EXPECT_TRUE(Pattern("").matches(""));
  EXPECT_FALSE(Pattern("").matches("x"));
}

TEST(Pattern, ReadsUtf8AndSurvivesOtherBytes) {
  EXPECT_TRUE(Pattern("Schicht.größe").matches("Schicht.größe"));
  EXPECT_TRUE(Pattern("gr.ße").matches("größe"));  // one character, two bytes
  EXPECT_FALSE(Pattern("gr..ße").matches("größe"));
  EXPECT_NO_THROW(Pattern(".*").matches("\xff\xfe"));
  EXPECT_THAT(error_of([] { Pattern("\xff"); }), HasSubstr("UTF-8"));
}

TEST(Pattern, WordsAreWhatItAsksForLiterally) {
  const auto words = [](const char* text) { return Pattern(text).words(); };
  EXPECT_THAT(words(R"(layers\.\d+\.moe\.experts\.w[123])"),
              ElementsAre("layers", "moe", "experts"));
  EXPECT_THAT(words("(?!.*shared).*expertz.*"), ElementsAre("expertz"));
  EXPECT_THAT(words("(?i)(gate|up)_proj(?:s)?"), ElementsAre("gate", "up", "_proj"));
  EXPECT_THAT(words("w12?"), ElementsAre("w1"));
  EXPECT_THAT(words("größe{2,}[a-z]*[^]]x"), ElementsAre("größ"));
  EXPECT_THAT(words(".*"), ElementsAre());
}

TEST(Pattern, NamesPositionAndReasonOfAnInvalidPattern) {
  EXPECT_THAT(error_of([] { Pattern("ab(c"); }),
              AllOf(HasSubstr("[FqnToConfig] key 're:ab(c'"), HasSubstr("position 4"),
                    HasSubstr("parenthesis")));
  EXPECT_THAT(error_of([] { Pattern("w[12"); }), HasSubstr("position 4"));
  EXPECT_THAT(error_of([] { Pattern("*w"); }), HasSubstr("position 0"));
  EXPECT_THAT(error_of([] { Pattern("((a{1000}){1000}){1000}"); }), HasSubstr("too large"));
}

TEST(Pattern, EndsCatastrophicBacktracking) {
  const auto start = std::chrono::steady_clock::now();
  const std::string name(60, 'a');
  EXPECT_THAT(error_of([&] { Pattern("(a+)+[^a]").matches(name); }),
              AllOf(HasSubstr("(a+)+[^a]"), HasSubstr("match limit exceeded"), HasSubstr(name)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_THAT(error_of([&] { Pattern("(?R)?[^a]").matches(name); }), HasSubstr("re:(?R)?[^a]"));
}

}  // namespace
}  // namespace moe8
