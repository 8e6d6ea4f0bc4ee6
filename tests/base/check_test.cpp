// SPDX-License-Identifier: BSD-3-Clause
#include "base/check.h"

#include "base/printable.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;

TEST(Fail, SaysOperationArgumentAndMessage) {
  EXPECT_EQ(error_of([] { fail("op", "x", "expected 1, got 2"); }), "[op] x: expected 1, got 2");
  EXPECT_EQ(error_of([] { fail("op", "", "nothing to do"); }), "[op] nothing to do");
}

TEST(Fail, SendsNoControlCharactersToATerminal) {
  EXPECT_EQ(error_of([] { fail("op", "\x1b[31m", std::string("a\0b\n", 4)); }),
            "[op] \\x1b[31m: a\\x00b\\x0a");
}

TEST(Fail, IsShort) {
  const std::string message = error_of([] { fail("op", "x", std::string(1 << 20, 'a')); });
  EXPECT_LT(message.size(), 10'100);
  EXPECT_TRUE(message.ends_with("aaa..."));
}

TEST(Printable, KeepsTextAndEscapesControls) {
  EXPECT_EQ(printable("größe \x7f\t"), "größe \\x7f\\x09");
  // U+009B starts a command of a terminal as ESC [ does; U+00A0 is a space.
  EXPECT_EQ(printable("\xc2\x9b [2J \xc2\xa0"), "\\xc2\\x9b [2J \xc2\xa0");
  EXPECT_EQ(printable("\xc2"), "\xc2");
}

}  // namespace
}  // namespace moe8
