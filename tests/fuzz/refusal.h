// SPDX-License-Identifier: BSD-3-Clause
// The one way in which bad input may end: a c10::Error of this house's shape.
#pragma once

#include <string>

#include "base/check.h"
#include "fuzz/fuzz_input.h"

namespace moe8::fuzz {

/// True when `call` returns, false when it refuses its input in words that can be shown to people.
/// Any other exception ends the program.
template <typename Call>
bool accepts(const Call& call) {
  try {
    call();
    return true;
  } catch (const c10::Error& error) {
    const std::string message = message_of(error);
    require(message.starts_with("["), "an error begins with [op]: " + message);
    require(message.size() < 20'000, "an error can be read");
    for (const char c : message) {
      require(static_cast<unsigned char>(c) >= ' ' && c != '\x7f',
              "an error sends nothing but text to a terminal: " + message);
    }
    return false;
  }
}

}  // namespace moe8::fuzz
