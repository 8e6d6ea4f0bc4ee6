// SPDX-License-Identifier: BSD-3-Clause
// base/log.h for the Python package: warnings go to Python, which shows them as its own.
#include "base/log.h"

#include <utility>

#include "log.h"

namespace moe8 {
namespace {

std::vector<std::string>& collected() {
  thread_local std::vector<std::string> messages;
  return messages;
}

}  // namespace

std::vector<std::string> native::take_warnings() {
  return std::exchange(collected(), {});
}

void log_error(const std::string& message) {
  collected().push_back(message);
}
void log_warning(const std::string& message) {
  collected().push_back(message);
}
void log_info(const std::string& /*message*/) {}
bool logs_dispatch() {
  return false;
}
void log_dispatch(const std::string& /*message*/) {}

}  // namespace moe8
