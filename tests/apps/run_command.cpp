// SPDX-License-Identifier: BSD-3-Clause
#include "apps/run_command.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>

#include "testing/folder.h"

namespace moe8::testing {
namespace {

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

std::string moe8_path() {
  return MOE8_COMMAND;
}

Ran run_moe8(const std::vector<std::string>& arguments,
             const std::vector<std::string>& environment) {
  std::vector<std::string> words{MOE8_COMMAND};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = environment;  // first: the first of two equal names counts
  for (char** entry = environ; *entry; ++entry) variables.emplace_back(*entry);

  // Files, not pipes: a child that prints much cannot block.
  const TemporaryFolder folder;
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, (folder / "out").c_str(), O_CREAT | O_WRONLY, 0600);
  posix_spawn_file_actions_addopen(&files, 2, (folder / "err").c_str(), O_CREAT | O_WRONLY, 0600);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, MOE8_COMMAND, &files, nullptr, pointers_to(words).data(),
                                  pointers_to(variables).data());
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) throw std::runtime_error("cannot start " MOE8_COMMAND);

  int status = 0;
  if (::waitpid(child, &status, 0) != child) throw std::runtime_error("lost " MOE8_COMMAND);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), folder.read("out"),
          folder.read("err")};
}

}  // namespace moe8::testing
