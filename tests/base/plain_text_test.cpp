// SPDX-License-Identifier: BSD-3-Clause
// Numbers as text: the same bytes in every locale.
#include "base/plain_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "testing/locale.h"

namespace moe8 {
namespace {

TEST(PlainText, IsTheSameInEveryLocale) {
  const testing::GermanStreams german;
  EXPECT_EQ(concat("[", 4000, ", ", 1234567.5, "] ", int64_t{-1000000}),
            "[4000, 1.23457e+06] -1000000");
  EXPECT_EQ(shortest(12345.5), "12345.5");
  EXPECT_EQ(fixed_digits(12345.678, 2), "12345.68");
  EXPECT_EQ(general_digits(1e-5, 3), "1e-05");
  EXPECT_EQ(formatted("%.2f%% of %s, %+d", 1234.5, "all", 7), "1234.50% of all, +7");
}

// The second entry of this test runs where printf itself writes a comma.
TEST(PlainText, LeavesTheLocaleOfTheThreadAsItIs) {
  const std::string before = std::to_string(0.5);
  EXPECT_EQ(formatted("%.1f", 0.5), "0.5");
  EXPECT_EQ(std::to_string(0.5), before);
}

TEST(PlainText, FormattedHasNoLimit) {
  EXPECT_EQ(formatted("%s", ""), "");
  const std::string many(5000, 'x');
  EXPECT_EQ(formatted("%s", many.c_str()), many);
}

TEST(PlainText, ShortestReadsBackAsTheSameNumber) {
  EXPECT_EQ(shortest(0.05), "0.05");
  EXPECT_EQ(shortest(1e-5), "1e-05");
  EXPECT_EQ(shortest(3), "3");
  EXPECT_EQ(shortest(-500000), "-500000");
  EXPECT_EQ(shortest(0.0001), "0.0001");
  EXPECT_EQ(shortest(1e15), "1000000000000000");
  EXPECT_EQ(shortest(1e16), "1e+16");
  EXPECT_EQ(shortest(0), "0");
  EXPECT_EQ(shortest(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(shortest(-INFINITY), "-inf");
  EXPECT_EQ(shortest(-NAN), "nan");
  constexpr double kLeast = std::numeric_limits<double>::denorm_min();
  EXPECT_EQ(std::strtod(shortest(kLeast).c_str(), nullptr), kLeast);
}

TEST(PlainText, HasRoomForTheLongestNumber) {
  const std::string text = fixed_digits(-std::numeric_limits<double>::max(), 1000);
  EXPECT_EQ(text.size(), 1 + 309 + 1 + 100u);
  EXPECT_EQ(general_digits(2.5, 4), "2.5");
}

}  // namespace
}  // namespace moe8
