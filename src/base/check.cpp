// SPDX-License-Identifier: BSD-3-Clause
#include "base/check.h"

#include "base/printable.h"

namespace moe8 {
namespace {

// Names may come from hostile files: what is longer than a few screens is cut.
constexpr size_t kLongestMessage = 10'000;

}  // namespace

void fail(const char* op, const std::string& argument, const std::string& message) {
  std::string text = c10::str("[", op, "] ");
  if (!argument.empty()) text += argument + ": ";
  text += message;
  if (text.size() > kLongestMessage) text = text.substr(0, kLongestMessage) + "...";
  throw c10::Error({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, printable(text));
}

std::string message_of(const std::exception& error) {
  if (const auto* torch_error = dynamic_cast<const c10::Error*>(&error)) {
    return torch_error->what_without_backtrace();
  }
  return error.what();
}

}  // namespace moe8
