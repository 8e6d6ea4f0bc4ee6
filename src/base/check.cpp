// SPDX-License-Identifier: BSD-3-Clause
#include "base/check.h"

#include <cstdlib>
#include <string_view>

#include "base/printable.h"

namespace moe8 {
namespace {

// Names may come from hostile files: what is longer than a few screens is cut.
constexpr size_t kLongestMessage = 10'000;

// A wrong argument is the caller's to mend: twenty lines of LibTorch's frames below the sentence
// that says how would only hide it. LibTorch's own variable brings them back.
bool backtraces_wanted() {
  const char* value = std::getenv("TORCH_SHOW_CPP_STACKTRACES");
  return value && std::string_view(value) == "1";
}

}  // namespace

void fail(const char* op, const std::string& argument, const std::string& message) {
  std::string text = concat("[", op, "] ");
  if (!argument.empty()) text += argument + ": ";
  text += message;
  if (text.size() > kLongestMessage) text = text.substr(0, kLongestMessage) + "...";
  if (backtraces_wanted()) {
    throw c10::Error({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, printable(text));
  }
  throw c10::Error(printable(text), nullptr);
}

std::string message_of(const std::exception& error) {
  if (const auto* torch_error = dynamic_cast<const c10::Error*>(&error)) {
    return torch_error->what_without_backtrace();
  }
  return error.what();
}

}  // namespace moe8
