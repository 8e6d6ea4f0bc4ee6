// SPDX-License-Identifier: BSD-3-Clause
#include "testing/processes.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <thread>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "base/check.h"
#include "testing/folder.h"

namespace moe8::testing {
namespace {

using Clock = std::chrono::steady_clock;
using Variables = std::map<std::string, std::string>;

constexpr const char* kCallVariable = "MOE8_TEST_CALL";

std::string test_name() {
  const ::testing::TestInfo* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  return std::string(test->test_suite_name()) + "." + test->name();
}

// Which call of run_processes() in this test it is: the same number here and in the processes.
int next_call() {
  static std::string test;
  static int calls = 0;
  if (std::exchange(test, test_name()) != test_name()) calls = 0;
  return calls++;
}

Variables own_environment() {
  Variables variables;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) variables[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return variables;
}

class Process {
 public:
  Process(const Variables& variables, std::string output) : output_(std::move(output)) {
    std::vector<std::string> entries;
    for (const auto& [name, value] : variables) entries.push_back(name + "=" + value);
    std::vector<char*> environment;
    environment.reserve(entries.size() + 1);
    for (std::string& entry : entries) environment.push_back(entry.data());
    environment.push_back(nullptr);
    std::string program = "/proc/self/exe", filter = "--gtest_filter=" + test_name();
    char* const arguments[] = {program.data(), filter.data(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    const int error =
        posix_spawn(&pid_, program.c_str(), &actions, nullptr, arguments, environment.data());
    posix_spawn_file_actions_destroy(&actions);
    MOE8_CHECK(error == 0, "processes", "", "expected a process, got error ", error);
  }
  ~Process() {
    kill_now();
    if (!has_ended_) ::waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool has_ended() {
    int status = 0;
    if (!has_ended_ && ::waitpid(pid_, &status, WNOHANG) == pid_) {
      has_ended_ = true;
      ended.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
      ended.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    }
    return has_ended_;
  }
  void kill_now() const {
    if (!has_ended_) ::kill(pid_, SIGKILL);
  }
  void read_output(const TemporaryFolder& folder, const std::string& name) {
    ended.output = folder.read(name);
  }

  EndedProcess ended;

 private:
  std::string output_;
  pid_t pid_ = 0;
  bool has_ended_ = false;
};

// Returns when all have ended, by themselves or by the limits.
void wait_for_all(std::vector<std::unique_ptr<Process>>& processes,
                  const ProcessesOptions& options) {
  Clock::time_point until = Clock::now() + options.limit;
  bool has_failed = false, is_cut = false;
  while (true) {
    bool all_ended = true;
    for (auto& process : processes) {
      const bool has_ended = process->has_ended();
      all_ended = all_ended && has_ended;
      if (has_ended && !has_failed && !process->ended.is_good()) {
        has_failed = true;
        until = std::min(until, Clock::now() + options.limit_after_failure);
      }
    }
    if (all_ended) return;
    if (!is_cut && Clock::now() > until) {
      is_cut = true;
      for (auto& process : processes) {
        if (!process->has_ended()) process->ended.is_late = true;
        process->kill_now();
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

std::vector<EndedProcess> start_and_wait(int64_t world, int call, const ProcessesOptions& options) {
  c10d::TCPStoreOptions store;
  store.port = 0;  // a free one
  store.isServer = true;
  store.waitWorkers = false;
  const auto server = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", store);
  const TemporaryFolder folder;
  std::vector<std::unique_ptr<Process>> processes;
  Variables variables = own_environment();
  variables["MASTER_ADDR"] = "127.0.0.1";
  variables["MASTER_PORT"] = concat(server->getPort());
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  variables["TORCHELASTIC_RESTART_COUNT"] = "0";
  variables["WORLD_SIZE"] = variables["LOCAL_WORLD_SIZE"] = concat(world);
  variables["OMP_NUM_THREADS"] = "1";  // tests run side by side
  variables[kCallVariable] = concat(call);
  for (const auto& [name, value] : options.environment) {
    if (value.empty()) {
      variables.erase(name);
    } else {
      variables[name] = value;
    }
  }
  for (int64_t rank = 0; rank < world; ++rank) {
    variables["RANK"] = variables["LOCAL_RANK"] = concat(rank);
    processes.push_back(std::make_unique<Process>(variables, folder / concat(rank)));
  }
  wait_for_all(processes, options);
  std::vector<EndedProcess> ended;
  for (int64_t rank = 0; rank < world; ++rank) {
    processes[static_cast<size_t>(rank)]->read_output(folder, concat(rank));
    ended.push_back(processes[static_cast<size_t>(rank)]->ended);
  }
  return ended;
}

[[noreturn]] void be_process(const std::function<void()>& body) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody outlives the test
  int code = 0;
  try {
    body();
    code = ::testing::Test::HasFailure() ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", message_of(error).c_str());
    code = 1;
  }
  std::fflush(nullptr);
  ::_exit(code);  // the destructors of the test's own objects belong to the first process
}

}  // namespace

std::vector<EndedProcess> run_processes(int64_t world, const std::function<void()>& body,
                                        const ProcessesOptions& options) {
  const int call = next_call();
  const char* const wanted = std::getenv(kCallVariable);
  if (!wanted) return start_and_wait(world, call, options);
  if (concat(call) != wanted) return std::vector<EndedProcess>(static_cast<size_t>(world));
  be_process(body);
}

void in_processes(const std::vector<int64_t>& worlds, const std::function<void(Parallel&)>& body,
                  const std::function<ParallelLayout(int64_t world)>& layout,
                  const ProcessesOptions& options) {
  for (const int64_t world : worlds) {
    const auto run = [&] {
      const ParallelLayout chosen = layout ? layout(world) : ParallelLayout{};
      Parallel parallel(
          {.layout = chosen, .device = options.device, .timeout = std::chrono::seconds(60)});
      try {
        body(parallel);
      } catch (const std::exception& error) {
        parallel.abort(message_of(error));
        throw;
      }
      if (::testing::Test::HasFailure()) parallel.abort("an expectation failed");
    };
    const std::vector<EndedProcess> ended = run_processes(world, run, options);
    for (size_t rank = 0; rank < ended.size(); ++rank) {
      const EndedProcess& process = ended[rank];
      EXPECT_TRUE(process.is_good())
          << "rank " << rank << " of " << world << ": exit code " << process.exit_code
          << ", signal " << process.signal << (process.is_late ? ", late" : "") << "\n"
          << process.output;
    }
  }
}

}  // namespace moe8::testing
