// SPDX-License-Identifier: BSD-3-Clause
// Conversion files: order, fields, and every mistake by its message.
#include "moe8/conversion_file.h"

#include "convert/conversion_rules.h"
#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

std::string message(const std::string& text) {
  return error_of([&] { to_fqn_config(parse_conversion(text, "c.toml")); });
}

TEST(ConversionFile, KeepsOrderAndFields) {
  const FqnToConfig keys = to_fqn_config(parse_conversion(R"(
[[convert]]
match = "re:.*experts.*"
recipe = "mxfp8_rceil"
wgrad_with_hp = true
scale_calculation_mode = "floor"

[[convert]]
match = "output"
recipe = "none"

[[convert]]
match = "_default"
recipe = "rowwise"
)",
                                                          "c.toml"));
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(keys[0].first, "re:.*experts.*");
  const MXFP8GroupedMMConfig expected{KernelPreference::AUTO, at::kBFloat16, true,
                                      ScaleCalculationMode::FLOOR};
  EXPECT_EQ(keys[0].second, Config(expected));
  EXPECT_EQ(keys[1].first, "output");
  EXPECT_FALSE(keys[1].second.has_value());
  EXPECT_EQ(keys[2].second, recipe("rowwise"));
}

TEST(ConversionFile, MistakesNameFileAndLine) {
  EXPECT_EQ(message(""), "[conversion] file: expected [[convert]] tables, got none in c.toml");
  EXPECT_THAT(
      message("[[conver]]\n"),
      HasSubstr("[conversion] conver: there is no such table of a conversion file (c.toml:1). The "
                "nearest: convert"));
  EXPECT_EQ(message("convert = 5\n"),
            "[conversion] convert: expected [[convert]] tables at c.toml:1, got 5 (an integer)");
  EXPECT_EQ(message("convert = [5]\n"),
            "[conversion] convert: expected tables at c.toml:1, got 5 (an integer)");
  EXPECT_EQ(message("\n[[convert]]\nrecipe = \"none\"\n"),
            "[conversion] match: expected a string in [[convert]] at c.toml:2, got nothing");
  EXPECT_EQ(message("[[convert]]\nmatch = \"a\"\n"),
            "[conversion] recipe: expected a string in [[convert]] at c.toml:1, got nothing");
  EXPECT_EQ(message("[[convert]]\nmatch = 3\nrecipe = \"none\"\n"),
            "[conversion] match: expected a string at c.toml:2, got 3 (an integer)");
  EXPECT_THAT(message("[[convert]]\nmatch = \"a\"\nrecipe = \"mxfp9\"\n"),
              HasSubstr("[conversion] c.toml:1: [recipe] name: expected one of fp8_rowwise, "));
  EXPECT_THAT(
      message("[[convert]]\nmatch = \"a\"\nrecipe = \"mxfp8_rceil\"\nblock = 16\n"),
      HasSubstr("[conversion] c.toml:1: [MXFP8GroupedMMConfig] block: there is no such field"));
  EXPECT_THAT(message("[[convert]]\nmatch = \"a\"\nrecipe = \"mxfp8_cublas\"\nblock_size = 16\n"),
              HasSubstr("[conversion] c.toml:1: [MXLinearConfig] block_size: expected 32"));
  EXPECT_EQ(message("[[convert]]\nmatch = \"a\"\nrecipe = \"none\"\nout_dtype = \"float32\"\n"),
            "[conversion] out_dtype: expected no fields beside recipe = \"none\" at c.toml:1");
  EXPECT_EQ(
      message("[[convert]]\nmatch = \"a\"\nrecipe = \"rowwise\"\nemulate = [1]\n"),
      "[conversion] emulate: expected a string, boolean or integer at c.toml:4, got an array");
  EXPECT_THAT(message("[[convert]\n"), HasSubstr("[conversion] c.toml:1:"));
}

TEST(ConversionFile, ReadFromDiskAndWrittenBack) {
  const testing::TemporaryFolder folder;
  const std::vector<ConversionRule> rules{
      {"re:.*\\.\"x\"", "mxfp8_rceil", {{"out_dtype", "float32"}}, ""},
      {"\n\na break \"first\" and\ttabs", "rowwise", {}, ""},
      {"", "none", {}, ""}};
  const std::string path = folder.write("c.toml", to_toml(rules));
  EXPECT_EQ(read_conversion_rules(path), rules);
  EXPECT_EQ(read_conversion_file(path), to_fqn_config(rules));
  EXPECT_THAT(error_of([&] { read_conversion_file(folder / "d.toml"); }),
              HasSubstr("which does not exist"));
}

}  // namespace
}  // namespace moe8
