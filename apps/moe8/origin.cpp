// SPDX-License-Identifier: BSD-3-Clause
#include "origin.h"

#include <algorithm>
#include <fstream>
#include <string_view>
#include <thread>

#include "commit.h"
#include "doctor/machine.h"
#include "moe8/version.h"

namespace moe8 {
namespace {

// As a shell takes it: in single quotes where a character might mean something.
std::string shell_word(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./=,:+-@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string line;
  for (std::string word; std::getline(file, word, '\0');) {
    line += (line.empty() ? "" : " ") + shell_word(word);
  }
  return line;
}

}  // namespace

RunOrigin this_origin() {
  const std::string_view commit = kCommit;
  return {.program = std::string("moe8 ") + version() +
                     (commit.empty() ? "" : " (" + std::string(commit) + ")"),
          .command = command_line(),
          .machine = cpu_model() + ", " + std::to_string(std::thread::hardware_concurrency()) +
                     " CPUs, " + total_memory()};
}

}  // namespace moe8
