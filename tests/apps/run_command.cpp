// SPDX-License-Identifier: BSD-3-Clause
#include "apps/run_command.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <stdexcept>

#include "testing/folder.h"

namespace moe8::testing {
namespace {

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

std::string moe8_path() {
  return MOE8_COMMAND;
}

struct Moe8Process::Output {
  TemporaryFolder folder;
};

Moe8Process::Moe8Process(const std::vector<std::string>& arguments,
                         const std::vector<std::string>& environment)
    : output_(std::make_unique<Output>()) {
  std::vector<std::string> words{MOE8_COMMAND};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = environment;  // first: the first of two equal names counts
  for (char** entry = environ; *entry; ++entry) variables.emplace_back(*entry);

  const TemporaryFolder& folder = output_->folder;
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, (folder / "out").c_str(), O_CREAT | O_WRONLY, 0600);
  posix_spawn_file_actions_addopen(&files, 2, (folder / "err").c_str(), O_CREAT | O_WRONLY, 0600);
  const int error = ::posix_spawn(&child_, MOE8_COMMAND, &files, nullptr, pointers_to(words).data(),
                                  pointers_to(variables).data());
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) throw std::runtime_error("cannot start " MOE8_COMMAND);
}

Moe8Process::~Moe8Process() {
  if (!ended_) {
    signal(SIGKILL);
    ::waitpid(child_, &status_, 0);
  }
}

bool Moe8Process::runs() {
  if (!ended_) ended_ = ::waitpid(child_, &status_, WNOHANG) == child_;
  return !ended_;
}

void Moe8Process::signal(int number) const {
  ::kill(child_, number);
}

Ran Moe8Process::wait() {
  if (!ended_ && ::waitpid(child_, &status_, 0) != child_) {
    throw std::runtime_error("lost " MOE8_COMMAND);
  }
  ended_ = true;
  return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_),
          output_->folder.read("out"), output_->folder.read("err")};
}

Ran run_moe8(const std::vector<std::string>& arguments,
             const std::vector<std::string>& environment) {
  return Moe8Process(arguments, environment).wait();
}

}  // namespace moe8::testing
