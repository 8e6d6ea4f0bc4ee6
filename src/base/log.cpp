// SPDX-License-Identifier: BSD-3-Clause
#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "base/printable.h"

namespace moe8 {
namespace {

struct Logger {
  std::shared_ptr<spdlog::logger> out;
  bool dispatch = false;
};

Logger make_logger() {
  const char* setting = std::getenv("MOE8_LOG");
  const std::string_view text = setting ? setting : "";
  const auto asks_for = [&](std::string_view word) {
    return text.find(word) != std::string_view::npos;
  };
  Logger logger;
  logger.out = std::make_shared<spdlog::logger>(
      "moe8", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger.out->set_pattern("%n: %^%l%$: %v");
  logger.dispatch = asks_for("dispatch");
  logger.out->set_level(asks_for("debug") || logger.dispatch ? spdlog::level::debug
                        : asks_for("info")                   ? spdlog::level::info
                        : asks_for("error")                  ? spdlog::level::err
                                                             : spdlog::level::warn);
  return logger;
}

Logger& logger() {
  static Logger instance = make_logger();
  return instance;
}

// These messages have lines of their own, and what comes from strangers is made printable where it
// is put into them: only what else steers a terminal is left to escape.
std::string printable_lines(const std::string& message) {
  std::string text;
  size_t begin = 0;
  for (size_t end; (end = message.find('\n', begin)) != std::string::npos; begin = end + 1) {
    text += printable(std::string_view(message).substr(begin, end - begin)) + '\n';
  }
  return text + printable(std::string_view(message).substr(begin));
}

}  // namespace

void log_error(const std::string& message) {
  logger().out->error("{}", printable(message));
}
void log_warning(const std::string& message) {
  logger().out->warn("{}", printable(message));
}
void log_info(const std::string& message) {
  logger().out->info("{}", printable_lines(message));
}
bool logs_dispatch() {
  return logger().dispatch;
}
void log_dispatch(const std::string& message) {
  logger().out->debug("{}", printable_lines(message));
}

}  // namespace moe8
