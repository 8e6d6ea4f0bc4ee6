# SPDX-License-Identifier: BSD-3-Clause
# Writes a header with the commit that is built, when it is another than at the last build:
#   cmake -DSOURCE=FOLDER -DOUT=commit.h -P commit.cmake
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=10
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  set(commit "")  # no git, or no clone
endif()
set(text "// Made by apps/moe8/commit.cmake.
#pragma once

namespace moe8 {

inline constexpr const char* kCommit = \"${commit}\";

}  // namespace moe8
")
file(WRITE "${OUT}.new" "${text}")
file(COPY_FILE "${OUT}.new" "${OUT}" ONLY_IF_DIFFERENT)
