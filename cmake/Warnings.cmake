# SPDX-License-Identifier: BSD-3-Clause
# Warnings of our own targets. LibTorch's headers are system headers (imported targets), so they stay
# silent.
add_library(moe8_warnings INTERFACE)
target_compile_options(moe8_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
  $<$<BOOL:${MOE8_WERROR}>:-Werror>>)
