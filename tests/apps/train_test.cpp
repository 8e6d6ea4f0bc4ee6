// SPDX-License-Identifier: BSD-3-Clause
// moe8 train as its users run it: stopped, killed, resumed, refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "apps/run_command.h"
#include "train/store/run_folder.h"
#include "train/tiny_run.h"

namespace moe8::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class TrainCommand : public ::testing::Test {
 protected:
  TrainCommand() {
    RunConfig config = tiny_config(folder_);
    config.checkpoint.interval = 5;
    config.training.validation_interval = 7;
    config.training.steps = 40;
    folder_.write("config.toml", to_toml(config));
  }

  // The command line with which the tests begin a run and go on with it.
  std::vector<std::string> arguments(const std::string& out, int steps) const {
    return {"train",
            "--config",
            folder_ / "config.toml",
            "--resume",
            "--out",
            folder_ / out,
            "--set",
            "training.steps=" + std::to_string(steps)};
  }

  size_t lines(const std::string& out) const {
    return static_cast<size_t>(step_lines(folder_.read(out + "/metrics.jsonl")));
  }

  bool reaches(Moe8Process& process, const std::string& out, size_t count) const {
    while (lines(out) < count) {
      if (!process.runs()) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  const TemporaryFolder folder_;
  // Or else the command starts itself a second time.
  const std::vector<std::string> environment_{"GOMP_SPINCOUNT=1"};
};

void expect_one_line(const Ran& ran, int status, const std::string& message) {
  EXPECT_EQ(ran.status, status);
  EXPECT_THAT(ran.err, HasSubstr(message));
  EXPECT_EQ(std::ranges::count(ran.err, '\n'), 1) << ran.err;
}

TEST_F(TrainCommand, KilledAgainAndAgainItEndsAsIfNothingHadHappened) {
  ASSERT_EQ(run_moe8(arguments("unbroken", 40), environment_).status, 0);
  int kills = 0;
  for (const size_t line : {3, 6, 15, 28, 34}) {
    Moe8Process process(arguments("run", 40), environment_);
    if (!reaches(process, "run", line)) break;
    process.signal(SIGKILL);
    kills += process.wait().status == 128 + SIGKILL;
  }
  EXPECT_GE(kills, 3);  // a slow look at the file may miss the end of the run
  // Without its config: the folder has what is needed.
  const Ran end = run_moe8({"train", "--resume", "--out", folder_ / "run"}, environment_);
  EXPECT_EQ(end.status, 0) << end.err;
  EXPECT_THAT(end.out, HasSubstr("Trained 40 steps with bf16"));
  EXPECT_EQ(repeatable(folder_ / "run/metrics.jsonl"),
            repeatable(folder_ / "unbroken/metrics.jsonl"));
  EXPECT_EQ(folder_.read("run/model.safetensors"), folder_.read("unbroken/model.safetensors"));
}

TEST_F(TrainCommand, ASignalSavesTheRunAndASecondRunIsRefusedMeanwhile) {
  std::vector<std::string> endless = arguments("run", 1'000'000);
  endless.insert(endless.end(), {"--set", "numerics.interval=0"});  // no warning on standard error
  Moe8Process process(endless, environment_);
  ASSERT_TRUE(reaches(process, "run", 1)) << process.wait().err;
  expect_one_line(run_moe8(endless, environment_), 1,
                  "moe8: [train] output.folder: expected no other run in '" + (folder_ / "run") +
                      "', but one is going on (process " + std::to_string(process.id()) + ")");
  process.signal(SIGTERM);
  const Ran ran = process.wait();
  EXPECT_EQ(ran.status, 128 + SIGTERM);
  EXPECT_EQ(ran.err, "");
  const std::string steps = std::to_string(lines("run"));
  EXPECT_THAT(ran.out, HasSubstr("Stopped by SIGTERM after step " + steps +
                                 " of 1000000. Go on with: moe8 train --resume --out " +
                                 (folder_ / "run") + "\n"));
  EXPECT_FALSE(fs::exists(folder_ / "run/result.json"));
  const Ran again =
      run_moe8({"train", "--resume", "--out", folder_ / "run", "--set", "training.steps=" + steps},
               environment_);
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("Trained " + steps + " steps"));
}

// No SIGXFSZ and no half checkpoint when a file may not grow.
TEST_F(TrainCommand, AFullDiskIsOneLine) {
  const std::string command = "ulimit -f 64; GOMP_SPINCOUNT=1 '" + moe8_path() +
                              "' train --config '" + (folder_ / "config.toml") + "' --out '" +
                              (folder_ / "run") + "' >'" + (folder_ / "out") + "' 2>'" +
                              (folder_ / "err") + "'";
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status)) << status;
  expect_one_line({WEXITSTATUS(status), "", folder_.read("err")}, 1,
                  "/model.safetensors: expected to write ");
  EXPECT_THAT(folder_.read("err"), HasSubstr("File too large"));
  EXPECT_TRUE(fs::is_empty(folder_ / "run/checkpoints"));
  EXPECT_EQ(run_moe8({"train", "--resume", "--out", folder_ / "run"}, environment_).status, 0);
}

// Started as daemons are: files must not get the numbers of standard output and error.
TEST_F(TrainCommand, ClosedDescriptorsSpoilNoFile) {
  for (const char* closed : {"<&-", ">&-", "2>&-", "<&- >&- 2>&-"}) {
    const std::string command = "GOMP_SPINCOUNT=1 '" + moe8_path() +
                                "' train --overwrite --config '" + (folder_ / "config.toml") +
                                "' --set training.steps=2 --out '" + (folder_ / "run") +
                                "' >/dev/null " + closed;
    EXPECT_EQ(std::system(command.c_str()), 0) << closed;
    EXPECT_EQ(folder_.read("run/run.lock").find_first_not_of("0123456789"), std::string::npos);
    EXPECT_EQ(read_metrics(folder_ / "run/metrics.jsonl").size(), 2u) << closed;
  }
}

TEST_F(TrainCommand, AShortenedTextIsOneLine) {
  Moe8Process process(arguments("run", 1'000'000), environment_);
  ASSERT_TRUE(reaches(process, "run", 2)) << process.wait().err;
  fs::resize_file(folder_ / "text.txt", 0);
  expect_one_line(process.wait(), 1,
                  "moe8: [text_data] " + (folder_ / "text.txt") + ": expected 33 bytes at ");
}

TEST_F(TrainCommand, ARunInHighPrecisionIsAFailure) {
  std::vector<std::string> environment = environment_;
  environment.emplace_back("LD_PRELOAD=" MOE8_WITHOUT_HOOKS);
  const char* asan = std::getenv("ASAN_OPTIONS");  // the sanitizer wants to be loaded first
  if (asan)
    environment.push_back("ASAN_OPTIONS=" + std::string(asan) + ":verify_asan_link_order=0");
  std::vector<std::string> words = arguments("run", 3);
  words.insert(words.end(), {"--recipe", "mxfp8_rceil"});
  const Ran ran = run_moe8(words, environment);
  expect_one_line(ran, 1, "moe8: [train] convert: expected products in low precision of every");
  EXPECT_THAT(ran.err, HasSubstr("layers.1.moe.shared_experts.w2.weight (32, 32)"));
  EXPECT_THAT(ran.err, HasSubstr("Training stopped after the first step."));
  EXPECT_EQ(lines("run"), 0u);
  EXPECT_FALSE(fs::exists(folder_ / "run/model.safetensors"));
  // The same command with the hooks trains.
  EXPECT_EQ(run_moe8(words, environment_).status, 0);
}

TEST_F(TrainCommand, WrongUsage) {
  expect_one_line(run_moe8({"train"}), 2, "moe8: --config is required. See: moe8 train --help");
  expect_one_line(run_moe8({"train", "--resume"}), 2, "moe8: --config or --out is required");
  expect_one_line(run_moe8({"train", "--resume", "--overwrite", "--out", "x"}), 2, "excludes");
  expect_one_line(run_moe8({"train", "--resume", "--out", folder_ / "none"}), 1,
                  "[config] file: expected a readable file, got '" + (folder_ / "none/run.toml"));
}

}  // namespace
}  // namespace moe8::testing
