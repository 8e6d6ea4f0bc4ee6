// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include "testing/locale.h"

int main(int argc, char** argv) {
  moe8::testing::set_locale_of_environment();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
