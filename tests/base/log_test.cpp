// SPDX-License-Identifier: BSD-3-Clause
// What the log makes of a message: lines of the library's own stay lines, strangers steer nothing.
#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace moe8 {
namespace {

// Read when the first message comes.
const int kSet = ::setenv("MOE8_LOG", "dispatch", /*replace=*/1);

std::string logged(void (*log)(const std::string&), const std::string& message) {
  ::testing::internal::CaptureStderr();
  log(message);
  return ::testing::internal::GetCapturedStderr();
}

TEST(Log, DispatchAndInfoHaveLines) {
  ASSERT_EQ(kSet, 0);
  EXPECT_EQ(logged(log_dispatch, "product\n  kernel: no\x1b[2J\n"),
            "moe8: debug: product\n  kernel: no\\x1b[2J\n\n");
  EXPECT_EQ(logged(log_info, "a\nb"), "moe8: info: a\nb\n");
}

TEST(Log, WarningsAndErrorsAreOneLine) {
  EXPECT_EQ(logged(log_warning, "a\nb"), "moe8: warning: a\\x0ab\n");
  EXPECT_EQ(logged(log_error, "a\nb"), "moe8: error: a\\x0ab\n");
}

}  // namespace
}  // namespace moe8
