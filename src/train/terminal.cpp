// SPDX-License-Identifier: BSD-3-Clause
#include "train/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace moe8 {

int terminal_columns(int fd) {
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const char* columns = std::getenv("COLUMNS");
  const int64_t number = columns ? std::strtoll(columns, nullptr, 10) : 0;
  return number > 0 && number < 10'000 ? static_cast<int>(number) : 80;
}

size_t table_columns(int fd) {
  return ::isatty(fd) ? static_cast<size_t>(terminal_columns(fd)) : 0;
}

}  // namespace moe8
