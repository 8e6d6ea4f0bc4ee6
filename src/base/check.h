// SPDX-License-Identifier: BSD-3-Clause
// Errors for people: one way to refuse bad input, one shape of message.
//   [op] argument: expected ..., got .... Hint.
#pragma once

#include <c10/util/Exception.h>

#include "base/plain_text.h"

/// MOE8_CHECK(condition, "quantize_mx", "axis", "expected 0 to 1, got 7")
/// throws c10::Error "[quantize_mx] axis: expected 0 to 1, got 7" when the condition is false. The
/// pieces after the argument's name are put together by concat() and only evaluated on failure.
/// A macro because the message must not be built when all is well.
#define MOE8_CHECK(condition, op, argument, ...)               \
  do {                                                         \
    if (!(condition)) [[unlikely]] {                           \
      ::moe8::fail(op, argument, ::moe8::concat(__VA_ARGS__)); \
    }                                                          \
  } while (false)

namespace moe8 {

/// Throws c10::Error "[op] argument: message"; without an argument "[op] message".
[[noreturn]] void fail(const char* op, const std::string& argument, const std::string& message);

/// The message of an exception for people: c10::Error without its C++ backtrace.
std::string message_of(const std::exception& error);

}  // namespace moe8
