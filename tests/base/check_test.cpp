// SPDX-License-Identifier: BSD-3-Clause
#include "base/check.h"

#include "base/nearest.h"
#include "base/printable.h"
#include "testing/compare.h"
#include "testing/locale.h"

namespace moe8 {
namespace {

using testing::error_of;

TEST(Fail, SaysOperationArgumentAndMessage) {
  EXPECT_EQ(error_of([] { fail("op", "x", "expected 1, got 2"); }), "[op] x: expected 1, got 2");
  EXPECT_EQ(error_of([] { fail("op", "", "nothing to do"); }), "[op] nothing to do");
}

TEST(Fail, NumbersDoNotFollowTheLocale) {
  const testing::GermanStreams german;
  EXPECT_EQ(error_of([] {
              MOE8_CHECK(false, "op", "x", "expected at most ", 4096, ", got ", 1234567, " and ",
                         0.5, ", ", at::IntArrayRef{16384, 8192});
            }),
            "[op] x: expected at most 4096, got 1234567 and 0.5, [16384, 8192]");
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

TEST(Fail, CarriesNoBacktraceUnlessAskedFor) {
  const auto text = [] {
    try {
      fail("op", "x", "expected 1, got 2");
    } catch (const c10::Error& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(text(), "[op] x: expected 1, got 2");
  setenv("TORCH_SHOW_CPP_STACKTRACES", "1", 1);
  EXPECT_GT(text().size(), 40u);
  unsetenv("TORCH_SHOW_CPP_STACKTRACES");
}

TEST(DidYouMean, NamesWhatIsNearAndNothingElse) {
  const std::vector<std::string> names{"train", "plan", "mxfp8_rceil", "mxfp8_floor"};
  EXPECT_EQ(did_you_mean("trian", names), ". Did you mean 'train'?");
  EXPECT_EQ(did_you_mean("straining", names), "");
  EXPECT_EQ(did_you_mean("mxfp8_rciel", names), ". Did you mean 'mxfp8_rceil'?");
  EXPECT_EQ(did_you_mean("xyz", names), "");
  EXPECT_EQ(did_you_mean("", names), "");
  EXPECT_EQ(did_you_mean("x", {}), "");
}

TEST(Printable, KeepsTextAndEscapesControls) {
  EXPECT_EQ(printable("größe \x7f\t"), "größe \\x7f\\x09");
  // U+009B starts a command of a terminal as ESC [ does; U+00A0 is a space.
  EXPECT_EQ(printable("\xc2\x9b [2J \xc2\xa0"), "\\xc2\\x9b [2J \xc2\xa0");
  EXPECT_EQ(printable("\xc2"), "\xc2");
}

}  // namespace
}  // namespace moe8
