// SPDX-License-Identifier: BSD-3-Clause
// Tables for a terminal: aligned, and folded where they would not fit.
#include "base/text_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

namespace moe8 {
namespace {

using ::testing::ElementsAre;

const std::vector<std::vector<std::string>> kRows{
    {"name", "shape", "why"},
    {"layers.0.w", "(4, 64)", "the first key that matches decides: 're:.*layers.*'"},
    {"a remark that may be as long as it likes, whatever the columns are"},
    {"gr\xC3\xB6\xC3\x9F"
     "e",
     "", "x"}};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(TextTable, AlignsCharactersNotBytes) {
  EXPECT_THAT(
      lines_of(text_table(kRows, {.indent = " "})),
      ElementsAre(" name        shape    why",
                  " layers.0.w  (4, 64)  the first key that matches decides: 're:.*layers.*'",
                  " a remark that may be as long as it likes, whatever the columns are",
                  " gr\xC3\xB6\xC3\x9F"
                  "e                x"));
}

TEST(TextTable, FoldsTheWidestColumn) {
  EXPECT_THAT(
      lines_of(text_table({kRows[0], kRows[1]}, {.columns = 40})),
      ElementsAre("name        shape    why",  //
                  "layers.0.w  (4, 64)  the first key that",
                  "                     matches decides:", "                     're:.*layers.*'"));
  for (const std::string& line : lines_of(text_table({kRows[1]}, {.columns = 30}))) {
    EXPECT_LE(text_width(line), 34u) << line;  // no column is folded below 12 characters
  }
}

TEST(TextTable, FoldsWordsThatAreTooLong) {
  EXPECT_THAT(folded("abcdefgh ij", 4), ElementsAre("abcd", "efgh", "ij"));
  EXPECT_THAT(folded("\xC3\xB6\xC3\xB6\xC3\xB6", 2), ElementsAre("\xC3\xB6\xC3\xB6", "\xC3\xB6"));
  EXPECT_THAT(folded("", 4), ElementsAre(""));
}

}  // namespace
}  // namespace moe8
