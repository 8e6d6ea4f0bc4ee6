// SPDX-License-Identifier: BSD-3-Clause
// No exception leaves a C function: its message becomes moe8_error().
#pragma once

#include <exception>
#include <string>

#include "base/check.h"

namespace moe8::native {

/// Of the calling thread.
std::string& last_error();

template <typename F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    last_error() = message_of(error);
    return 1;
  }
}

}  // namespace moe8::native
