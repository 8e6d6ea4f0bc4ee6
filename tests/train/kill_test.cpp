// SPDX-License-Identifier: BSD-3-Clause
// Signals. SIGKILL at any moment: runs in child processes that are killed and resumed until they
// are done must leave the losses of an unbroken one, without gaps or duplicates.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <random>
#include <set>
#include <thread>

#include "testing/folder.h"
#include "train/interrupt.h"
#include "train/store/checkpoint_folder.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;
using testing::repeatable;
using testing::TemporaryFolder;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int kKills = 50;
constexpr int kKillsWhileWriting = 10;  // of them at least; every second one aims at a write

// A run that writes about as long as it computes. The parent never calls LibTorch, so that a fork
// finds no threads and no locks.
RunConfig busy_config(const TemporaryFolder& folder, const std::string& out) {
  RunConfig config = testing::tiny_config(folder, out);
  config.model.dim = 16;
  config.model.n_experts = 2;
  config.training.steps = 60;
  config.training.batch_size = 1;
  config.training.seq_len = 16;
  config.training.validation_interval = 5;
  config.training.validation_batches = 1;
  config.training.recipe = "mxfp8_rceil";
  config.checkpoint.interval = 2;
  config.checkpoint.keep = 1;
  return config;
}

enum class Traced { NO, YES };

// A child that begins the run or goes on with it, whichever fits, and stops after `steps` steps.
pid_t start(const RunConfig& config, Traced traced = Traced::NO, int steps = 1000) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  if (traced == Traced::YES && (::ptrace(PTRACE_TRACEME) != 0 || ::raise(SIGSTOP) != 0)) ::_exit(2);
  try {
    RunOptions options;
    options.existing = ExistingRun::RESUME;
    options.interrupted = [steps]() mutable { return steps-- > 0 ? 0 : SIGTERM; };
    train(config, options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
    ::_exit(1);
  }
  ::_exit(0);
}

enum class Wait { UNTIL_IT_ENDS, NOT };

// True when the child has ended, which it must do with status 0 unless it was killed.
bool ended(pid_t child, Wait wait) {
  int status = 0;
  if (::waitpid(child, &status, wait == Wait::NOT ? WNOHANG : 0) != child) return false;
  if (WIFSIGNALED(status)) {
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
  } else {
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  return true;
}

void finish(const RunConfig& config) {
  ended(start(config), Wait::UNTIL_IT_ENDS);
}

bool has_unfinished_files(const RunConfig& config) {
  std::error_code ignored;
  fs::recursive_directory_iterator it(config.output.folder, ignored), end;
  for (; !ignored && it != end; it.increment(ignored)) {
    const fs::path extension = it->path().extension();
    if (extension == ".partial" || extension == ".tmp") return true;
  }
  return false;
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::set<std::string> names_in(const std::string& path) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) names.insert(entry.path().filename());
  return names;
}

// Everything that a finished run must share with an unbroken one.
void expect_same_run(const RunConfig& unbroken, const RunConfig& broken) {
  const RunFolder a{unbroken.output.folder}, b{broken.output.folder};
  EXPECT_EQ(repeatable(b.metrics()), repeatable(a.metrics()));
  EXPECT_EQ(bytes_of(b.model()), bytes_of(a.model()));
  EXPECT_TRUE(fs::exists(b.result()));
  EXPECT_FALSE(has_unfinished_files(broken));
  EXPECT_EQ(names_in(b.checkpoints()), names_in(a.checkpoints()));
}

// A step's line is written when the checkpoints of the steps before it are complete.
void expect_the_last_checkpoint(const RunConfig& config) {
  const RunFolder folder{config.output.folder};
  const std::string metrics = bytes_of(folder.metrics());
  const int64_t steps = testing::step_lines(metrics), interval = config.checkpoint.interval;
  const auto entries = CheckpointFolder(folder.checkpoints()).entries();
  EXPECT_GE(entries.empty() ? 0 : entries.front().step, (steps - 1) / interval * interval);
}

// Waits for a time, or for the child's end: true when that came first.
bool ends_within(pid_t child, Seconds time) {
  const auto end = Clock::now() + time;
  while (Clock::now() < end) {
    if (ended(child, Wait::NOT)) return true;
    std::this_thread::sleep_for(
        std::min<Seconds>(std::chrono::milliseconds(1), end - Clock::now()));
  }
  return false;
}

// Waits until the child writes a file or a checkpoint, or for its end: true when that came first.
bool ends_before_writing(pid_t child, const RunConfig& config) {
  while (!has_unfinished_files(config)) {
    if (ended(child, Wait::NOT)) return true;
  }
  return false;
}

TEST(Kill, AtRandomMomentsLosesNothing) {
  const TemporaryFolder folder;
  const RunConfig unbroken = busy_config(folder, "unbroken");
  const auto begin = Clock::now();
  finish(unbroken);
  const double whole = Seconds(Clock::now() - begin).count();
  ASSERT_EQ(repeatable(RunFolder{unbroken.output.folder}.metrics()).size(), 60u);

  std::mt19937 random(1);
  std::uniform_real_distribution<double> moment(0, whole / 3), within_a_write(0, 1e-3);
  int runs = 0, kills = 0, while_writing = 0;
  const auto enough = [&] { return kills >= kKills && while_writing >= kKillsWhileWriting; };
  for (; !enough() && kills < 6 * kKills && !HasFailure(); ++runs) {
    const RunConfig broken = busy_config(folder, "run" + std::to_string(runs));
    for (;;) {
      const pid_t child = start(broken);
      if (ends_within(child, Seconds(enough() ? 1e6 : moment(random)))) break;
      if (kills % 2 == 1 && (ends_before_writing(child, broken) ||
                             ends_within(child, Seconds(within_a_write(random))))) {
        break;
      }
      ::kill(child, SIGKILL);
      ended(child, Wait::UNTIL_IT_ENDS);
      expect_the_last_checkpoint(broken);
      ++kills;
      while_writing += has_unfinished_files(broken);
    }
    expect_same_run(unbroken, broken);
  }
  std::cout << kills << " kills, " << while_writing << " of them while writing, over " << runs
            << " runs of " << whole << " s\n";
  EXPECT_GE(kills, kKills);
  EXPECT_GE(while_writing, kKillsWhileWriting);
}

// ---- at every system call ---------------------------------------------------
// Only system calls change files, so a process that is killed before each of them in turn has been
// in every state that a killed process can leave, but for the middle of a single write.
bool changes_files(const __ptrace_syscall_info& call) {
  static const std::set<uint64_t> kNames{
      SYS_ftruncate, SYS_renameat, SYS_renameat2, SYS_unlinkat, SYS_mkdirat, SYS_symlinkat,
#ifdef SYS_rename  // of older architectures, which C libraries prefer there
      SYS_rename,    SYS_unlink,   SYS_rmdir,     SYS_mkdir,    SYS_symlink,
#endif
  };
  if (call.entry.nr == SYS_openat) return (call.entry.args[2] & O_CREAT) != 0;
  if (call.entry.nr == SYS_write) return call.entry.args[0] > STDERR_FILENO;
  return kNames.contains(call.entry.nr);
}

enum class Outcome { KILLED, ENDED, NOT_TRACEABLE };

// Lets a traced child run up to its call number `which` that changes files, and kills it before
// that. Writes in a row count as one.
Outcome kill_before_call(pid_t child, int which) {
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) return Outcome::NOT_TRACEABLE;
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  uint64_t last = 0;
  for (int seen = 0, signal = 0;;) {
    ::ptrace(PTRACE_SYSCALL, child, nullptr, signal);
    if (::waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
      return Outcome::ENDED;
    }
    const bool at_call = WSTOPSIG(status) == (SIGTRAP | 0x80);
    signal = at_call ? 0 : WSTOPSIG(status);
    __ptrace_syscall_info call{};
    if (!at_call || ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof call, &call) <= 0 ||
        call.op != PTRACE_SYSCALL_INFO_ENTRY || !changes_files(call)) {
      continue;
    }
    const bool in_a_row = call.entry.nr == SYS_write && last == SYS_write;
    last = call.entry.nr;
    if (in_a_row || ++seen < which) continue;
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    return Outcome::KILLED;
  }
}

// What the folder holds when a run begins that stopped after step 3, and what it ends with.
TEST(Kill, BeforeEverySystemCallLosesNothing) {
  const TemporaryFolder folder;
  const auto config_of = [&](const std::string& out) {
    RunConfig config = busy_config(folder, out);
    config.training.steps = 6;
    config.training.validation_interval = 4;
    return config;
  };
  const RunConfig unbroken = config_of("unbroken"), begun = config_of("begun"),
                  broken = config_of("broken");
  finish(unbroken);
  ended(start(begun, Traced::NO, 3), Wait::UNTIL_IT_ENDS);
  int moments = 0;
  for (Outcome outcome = Outcome::KILLED; outcome == Outcome::KILLED && !HasFailure();) {
    fs::remove_all(broken.output.folder);
    fs::copy(begun.output.folder, broken.output.folder,
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    outcome = kill_before_call(start(broken, Traced::YES), moments + 1);
    if (outcome == Outcome::NOT_TRACEABLE) GTEST_SKIP() << "this system lets nobody trace a child";
    expect_the_last_checkpoint(broken);
    if (outcome == Outcome::KILLED) finish(broken);
    expect_same_run(unbroken, broken);
    ++moments;
  }
  std::cout << moments << " moments\n";
  EXPECT_GT(moments, 50);
}

// ---- signals ----------------------------------------------------------------
TEST(Interrupt, NotesTheFirstSignalAndRestoresWhatWasThere) {
  ::signal(SIGHUP, SIG_IGN);
  {
    const Interrupt interrupt;
    Interrupt::wait(60);
    EXPECT_EQ(Interrupt::received(), 0);
    ::raise(SIGHUP);  // as under nohup
    ::raise(SIGXFSZ);
    ::raise(SIGPIPE);
    EXPECT_EQ(Interrupt::received(), 0);
    ::raise(SIGTERM);
    EXPECT_EQ(Interrupt::received(), SIGTERM);
  }
  EXPECT_EQ(::signal(SIGHUP, SIG_DFL), SIG_IGN);
  EXPECT_EQ(::signal(SIGTERM, SIG_DFL), SIG_DFL);
  EXPECT_EQ(::signal(SIGPIPE, SIG_DFL), SIG_DFL);
}

TEST(Interrupt, TheSecondSignalEndsAtOnce) {
  const auto twice = [](int first, int second) {
    const Interrupt interrupt;
    Interrupt::wait(60);
    ::raise(first);
    ::raise(second);
  };
  EXPECT_EXIT(twice(SIGINT, SIGINT), ::testing::ExitedWithCode(130), "");
  EXPECT_EXIT(twice(SIGINT, SIGTERM), ::testing::ExitedWithCode(143), "");
}

TEST(Interrupt, EndsAtOnceWhereNothingWouldBeLost) {
  const auto once = [](double wait) {
    const Interrupt interrupt;
    Interrupt::wait(60);
    Interrupt::wait(wait);
    ::raise(SIGTERM);
    ::sleep(30);  // no step
  };
  EXPECT_EXIT(once(0), ::testing::ExitedWithCode(143), "");
  EXPECT_EXIT(once(0.1), ::testing::ExitedWithCode(143), "the step did not end in time");
}

TEST(Interrupt, WhoSawTheSignalHasAllTheTime) {
  const auto slow = [] {
    const Interrupt interrupt;
    Interrupt::wait(1);
    ::raise(SIGTERM);
    if (Interrupt::received() != SIGTERM) ::_exit(1);
    for (unsigned left = 2; left > 0; left = ::sleep(left)) {
    }
    ::_exit(7);
  };
  EXPECT_EXIT(slow(), ::testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace moe8
