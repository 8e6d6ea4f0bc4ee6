// SPDX-License-Identifier: BSD-3-Clause
// Ranks that are killed at random moments, in checkpoints as well, and started again as a launcher
// would: the run ends up as one that nobody killed. MOE8_TEST_KILLS=50 kills so often (default: 4).
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <random>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "train/rank_runs.h"

namespace moe8 {
namespace {

using testing::CommonFolder;
using testing::EndedProcess;
using ::testing::HasSubstr;
using testing::ProcessesOptions;
using testing::run_processes;
using Clock = std::chrono::steady_clock;

constexpr const char* kKillVariable = "MOE8_TEST_KILL";
constexpr const char* kInSteps = "in its steps";  // a rank says so before the first

// How the ranks share the work.
struct Split {
  int64_t world, tensor, expert;
};
constexpr std::array<Split, 4> kSplits{{{2, 1, 1}, {2, 1, 2}, {2, 2, 1}, {4, 2, 2}}};

// Whom to kill and when: so long after the start, or after a checkpoint was begun.
struct Kill {
  int64_t run = 0;
  int64_t split = 0;
  int64_t rank = -1;  // nobody
  bool in_checkpoint = false;
  int64_t microseconds = 0;

  std::string to_text() const {
    return concat(run, ' ', split, ' ', rank, ' ', int{in_checkpoint}, ' ', microseconds);
  }
  static Kill from_environment() {
    Kill kill;
    if (const char* const text = std::getenv(kKillVariable)) {
      std::istringstream(text) >> kill.run >> kill.split >> kill.rank >> kill.in_checkpoint >>
          kill.microseconds;
    }
    return kill;
  }
};

RunConfig config_of(const CommonFolder& folder, const Split& split, const std::string& name) {
  RunConfig config = testing::config_of(folder, name, "fp8_rowwise");
  config.model.n_heads = config.model.n_kv_heads = 4;
  config.parallel.tensor = split.tensor;
  config.parallel.expert = split.expert;
  return config;
}

// Kills this process when its moment has come, from a thread.
class Killer {
 public:
  Killer(const Kill& kill, const std::string& checkpoints)
      : thread_([this, kill, checkpoints] {
          while (kill.in_checkpoint && !ends_ && !is_writing(checkpoints)) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
          }
          const auto moment = Clock::now() + std::chrono::microseconds(kill.microseconds);
          while (!ends_ && Clock::now() < moment) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
          }
          if (!ends_) ::raise(SIGKILL);
        }) {}
  ~Killer() {
    ends_ = true;
    thread_.join();
  }

 private:
  static bool is_writing(const std::string& checkpoints) {
    std::error_code ignored;
    const std::filesystem::directory_iterator entries(checkpoints, ignored);
    return std::ranges::any_of(
        entries, [](const auto& entry) { return entry.path().extension() == ".partial"; });
  }

  std::atomic<bool> ends_ = false;
  std::thread thread_;
};

// A rank of a run, which may be killed.
void work(const CommonFolder& folder) {
  const Kill kill = Kill::from_environment();
  const Split& split = kSplits.at(static_cast<size_t>(kill.split));
  const RunConfig config = config_of(folder, split, concat("run-", kill.run));
  std::optional<Killer> killer;
  if (kill.rank == launch_from_environment().rank) {
    killer.emplace(kill, RunFolder{config.output.folder}.checkpoints());
  }
  RunOptions options = testing::impatient();
  options.interrupted = [said = false]() mutable {
    if (!std::exchange(said, true)) std::cerr << kInSteps << std::endl;
    return 0;
  };
  testing::go_on(config, options);
}

std::vector<EndedProcess> start(const CommonFolder& folder, const Kill& kill) {
  ProcessesOptions options = folder.options();
  options.environment.emplace_back(kKillVariable, kill.to_text());
  return run_processes(
      kSplits.at(static_cast<size_t>(kill.split)).world, [&] { work(folder); }, options);
}

// One line says who was killed, unless that was before the ranks had met: launchers see to that. Where
// all files of the run are there already, the others may wait for it up to a minute before they leave,
// which start() cuts short.
void expect_named(const std::vector<EndedProcess>& ended, const Kill& kill, bool is_complete) {
  const auto killed = static_cast<size_t>(kill.rank);
  if (ended[killed].output.find(kInSteps) == std::string::npos) return;
  std::string all;
  for (size_t rank = 0; rank < ended.size(); ++rank) {
    if (rank == killed) continue;
    const bool leaves = is_complete && ended[rank].signal == SIGKILL;
    EXPECT_TRUE(ended[rank].exit_code == 1 || ended[rank].is_good() || leaves)
        << ended[rank].output;
    EXPECT_FALSE(ended[rank].is_late);
    all += ended[rank].output;
  }
  const bool some_failed =
      std::ranges::any_of(ended, [](const EndedProcess& p) { return p.exit_code == 1; });
  if (!some_failed) return;
  EXPECT_THAT(all, HasSubstr(concat("moe8: rank ", kill.rank, ": no sign of life")));
}

int64_t kills_wanted() {
  const char* const text = std::getenv("MOE8_TEST_KILLS");
  return text ? std::max(1LL, std::strtoll(text, nullptr, 10)) : 4;
}

// What a run of this split leaves, and how long it takes, when nobody is killed.
struct Unbroken {
  RunConfig config;
  int64_t microseconds = 0;
};

Unbroken unbroken_run(const CommonFolder& folder, int64_t split) {
  const Kill nobody{.run = -1 - split, .split = split};
  const auto begin = Clock::now();
  testing::expect_good(start(folder, nobody));
  return {config_of(folder, kSplits.at(static_cast<size_t>(split)), concat("run-", nobody.run)),
          (Clock::now() - begin) / std::chrono::microseconds(1)};
}

// Runs until so many ranks were killed, each run to its end.
TEST(RankKills, RunsEndUpAsIfNobodyHadBeenKilled) {
  const CommonFolder folder;
  while (!folder.is_parent()) start(folder, {});  // until it is the call that made this process
  const auto seed = static_cast<unsigned>(Clock::now().time_since_epoch().count());
  std::mt19937 random(seed);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  std::vector<Unbroken> unbroken;  // of each split, as they are needed
  const int64_t wanted = kills_wanted();
  int64_t kills = 0, in_checkpoints = 0, runs = 0;
  for (; kills < wanted; ++runs) {
    const auto split = static_cast<size_t>(runs) % kSplits.size();
    if (split == unbroken.size()) {
      unbroken.push_back(unbroken_run(folder, static_cast<int64_t>(split)));
    }
    for (bool is_through = false; !is_through;) {
      Kill kill{.run = runs, .split = static_cast<int64_t>(split)};
      if (kills < wanted) kill.rank = below(kSplits.at(split).world);
      kill.in_checkpoint = below(2) == 0;
      kill.microseconds = below(kill.in_checkpoint ? 5000 : unbroken[split].microseconds);
      const auto ended = start(folder, kill);
      is_through = std::ranges::all_of(ended, &EndedProcess::is_good);
      if (is_through) break;
      ASSERT_GE(kill.rank, 0) << ended.front().output;
      const EndedProcess& killed = ended.at(static_cast<size_t>(kill.rank));
      ASSERT_EQ(killed.signal, SIGKILL) << killed.output;
      const RunFolder files{folder.path() + concat("run-", runs)};
      expect_named(ended, kill, std::filesystem::exists(files.result()));
      ++kills;
      in_checkpoints += kill.in_checkpoint;
    }
    const RunConfig broken = config_of(folder, kSplits.at(split), concat("run-", runs));
    testing::expect_same_run(unbroken[split].config, broken);
  }
  std::cout << kills << " kills, " << in_checkpoints << " of them in checkpoints, in " << runs
            << " runs; seed " << seed << "\n";
}

}  // namespace
}  // namespace moe8
