// SPDX-License-Identifier: BSD-3-Clause
// Runs of several processes: the losses and weights of one, killed and resumed on other numbers of
// ranks, and what ends them before the first step.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "testing/compare.h"
#include "testing/processes.h"
#include "train/rank_runs.h"
#include "train/store/checkpoint_folder.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

using testing::bytes_of;
using testing::CommonFolder;
using testing::config_of;
using testing::config_of_heads;
using testing::EndedProcess;
using testing::expect_good;
using testing::expect_near;
using testing::expect_same_run;
using testing::go_on;
using ::testing::HasSubstr;
using testing::impatient;
using testing::metrics_of;
using ::testing::Not;
using testing::ProcessesOptions;
using testing::repeatable;
using testing::run_processes;
using testing::TemporaryFolder;

// ---- the same run ---------------------------------------------------------------
class EveryRecipe : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryRecipe, LossesAndWeightsAreThoseOfOneProcess) {
  const CommonFolder folder;
  const RunConfig one = config_of(folder, "one", GetParam());
  if (folder.is_parent()) train(one);
  for (const int64_t world : {2, 4}) {
    const RunConfig several = config_of(folder, concat("of-", world), GetParam());
    const auto ended = run_processes(
        world, [&] { go_on(several); }, folder.options());
    expect_good(ended);
    expect_same_run(one, several);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryRecipe,
                         ::testing::Values("bf16", "fp8_rowwise", "mxfp8_rceil"));

TEST(Ranks, MuonAndOtherWeightsTrainAsOneProcess) {
  const CommonFolder folder;
  const auto check = [&](const std::string& name, const auto& change) {
    RunConfig one = config_of(folder, name + "-1"), two = config_of(folder, name + "-2");
    for (RunConfig* config : {&one, &two}) change(*config);
    if (folder.is_parent()) train(one);
    expect_good(run_processes(
        2, [&] { go_on(two); }, folder.options()));
    expect_same_run(one, two);
  };
  check("muon", [](RunConfig& c) {
    c.optimizer.kind = OptimizerKind::MUON;
    c.optimizer.moments = MomentDtype::BF16;
  });
  check("float32", [](RunConfig& c) { c.training.weights = Weights::FLOAT32; });
}

// Parts of a batch are other products: last digits differ.
TEST(Ranks, PartsOfABatchTrainNearlyAsOneProcess) {
  const CommonFolder folder;
  RunConfig one = config_of(folder, "one"), two = config_of(folder, "two");
  for (RunConfig* config : {&one, &two}) config->training.accumulation = 1;
  if (folder.is_parent()) train(one);
  expect_good(run_processes(
      2, [&] { go_on(two); }, folder.options()));
  const auto a = repeatable(RunFolder{one.output.folder}.metrics());
  const auto b = repeatable(RunFolder{two.output.folder}.metrics());
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i].loss, b[i].loss, 0.02 * a[i].loss);
}

// Experts over two ranks, alone and beside data parallelism: an expert's gradient is one product over
// the tokens of its group's ranks, so that last digits differ.
class EveryRecipeOverExperts : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryRecipeOverExperts, LossesAreNearlyThoseOfOneProcess) {
  const CommonFolder folder;
  const RunConfig one = config_of(folder, "one", GetParam());
  if (folder.is_parent()) train(one);
  for (const int64_t world : {2, 4}) {
    RunConfig several = config_of(folder, concat("of-", world), GetParam());
    several.parallel.expert = 2;
    expect_good(run_processes(
        world, [&] { go_on(several); }, folder.options()));
    if (!folder.is_parent()) continue;
    SCOPED_TRACE(world);
    const auto [a, b] = metrics_of(one, several);
    expect_near(a, b);
    if (HasFatalFailure()) return;
    // The first forward of whole batches computes the same numbers on whichever ranks.
    EXPECT_NEAR(a[0].loss, b[0].loss, 1e-4 * a[0].loss);
    EXPECT_EQ(a[0].expert_load_max, b[0].expert_load_max);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryRecipeOverExperts,
                         ::testing::Values("bf16", "fp8_rowwise", "mxfp8_rceil"));

// Heads and hidden features over ranks, alone and beside experts and data: sums over features are made
// in parts, and each rank's positions are products of their own.
class EveryRecipeOverTensorRanks : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryRecipeOverTensorRanks, LossesAreNearlyThoseOfOneProcess) {
  const CommonFolder folder;
  const RunConfig one = config_of_heads(folder, "one", GetParam());
  if (folder.is_parent()) train(one);
  struct Split {
    int64_t world, tensor, expert;
  };
  for (const auto& [world, tensor, expert] : {Split{2, 2, 1}, Split{4, 4, 1}, Split{4, 2, 2}}) {
    RunConfig several =
        config_of_heads(folder, concat("of-", world, "-", tensor, "-", expert), GetParam());
    several.parallel.tensor = tensor;
    several.parallel.expert = expert;
    expect_good(run_processes(
        world, [&] { go_on(several); }, folder.options()));
    if (!folder.is_parent()) continue;
    SCOPED_TRACE(concat("tensor ", tensor, " of ", world));
    const auto [a, b] = metrics_of(one, several);
    expect_near(a, b);
    if (HasFatalFailure()) return;
    EXPECT_NEAR(a[0].loss, b[0].loss, 1e-3 * a[0].loss);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryRecipeOverTensorRanks,
                         ::testing::Values("bf16", "fp8_rowwise", "mxfp8_rceil"));

// What four ranks wrote, with halves of weights and of experts, is read under any other split.
TEST(Ranks, PartsOfWeightsAreTheSameBitsUnderAnotherSplit) {
  const CommonFolder folder;
  RunConfig config = config_of_heads(folder, "run", "bf16");
  config.parallel.tensor = config.parallel.expert = 2;
  config.training.steps = 2;
  expect_good(run_processes(
      4, [&] { go_on(config); }, folder.options()));
  const RunFolder run{config.output.folder};
  const std::string written = folder.is_parent() ? bytes_of(run.model()) : "";
  struct Split {
    int64_t world, tensor, expert;
  };
  for (const auto& [world, tensor, expert] : {Split{1, 1, 1}, Split{4, 4, 1}, Split{2, 1, 2}}) {
    if (folder.is_parent()) {
      std::filesystem::remove(run.model());
      std::filesystem::remove(run.result());
    }
    config.parallel.tensor = tensor;
    config.parallel.expert = expert;
    expect_good(run_processes(
        world, [&] { go_on(config); }, folder.options()));
    if (!folder.is_parent()) continue;
    EXPECT_TRUE(bytes_of(run.model()) == written) << world << " ranks";
  }
}

// What two ranks with half of the experts each wrote is read by one rank, and by four with one each.
TEST(Ranks, WeightsAreTheSameBitsUnderAnotherSplit) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.parallel.expert = 2;
  config.training.steps = 2;
  expect_good(run_processes(
      2, [&] { go_on(config); }, folder.options()));
  const RunFolder run{config.output.folder};
  const std::string written = folder.is_parent() ? bytes_of(run.model()) : "";
  for (const int64_t world : {1, 4}) {
    // A finished run whose results are gone writes them again, from its checkpoint.
    if (folder.is_parent()) {
      std::filesystem::remove(run.model());
      std::filesystem::remove(run.result());
    }
    config.parallel.expert = world;
    expect_good(run_processes(
        world, [&] { go_on(config); }, folder.options()));
    if (!folder.is_parent()) continue;
    EXPECT_TRUE(bytes_of(run.model()) == written) << world << " ranks";
  }
}

// ---- killed and resumed ---------------------------------------------------------
TEST(Ranks, AKilledRankEndsTheOthersAndTheRunGoesOnWithAnotherNumber) {
  const CommonFolder folder;
  const RunConfig unbroken = config_of(folder, "unbroken"), broken = config_of(folder, "broken");
  if (folder.is_parent()) train(unbroken);

  // Rank 1 of 4 is killed before its fourth step: the checkpoint of step 2 is there.
  const auto body = [&] {
    RunOptions options = impatient();
    options.interrupted = [steps = 0]() mutable {
      if (launch_from_environment().rank == 1 && ++steps == 4) ::raise(SIGKILL);
      return 0;
    };
    go_on(broken, options);
  };
  const auto ended = run_processes(4, body, folder.options());
  if (folder.is_parent()) {
    EXPECT_EQ(ended[1].signal, SIGKILL);
    for (const size_t rank : {size_t{0}, size_t{2}, size_t{3}}) {
      EXPECT_EQ(ended[rank].exit_code, 1) << ended[rank].output;
      EXPECT_FALSE(ended[rank].is_late);
    }
    EXPECT_THAT(
        ended[0].output,
        HasSubstr("moe8: rank 1: no sign of life for 3 s: it was killed or hangs. All ranks "
                  "end. Start the same command again with --resume"));
    EXPECT_THAT(ended[2].output, Not(HasSubstr("moe8:")));
    EXPECT_THAT(ended[2].output,
                Not(HasSubstr("frame #")));  // LibTorch's, of a store that has gone
  }

  // Two ranks do one more step, one does the next, four the rest.
  for (const int64_t world : {2, 1, 4}) {
    const auto resumed = run_processes(
        world,
        [&] {
          RunOptions options;
          options.interrupted = [steps = world == 4 ? 100 : 1]() mutable {
            return steps-- > 0 ? 0 : SIGTERM;
          };
          go_on(broken, options);
        },
        folder.options());
    expect_good(resumed);
  }
  expect_same_run(unbroken, broken);
}

// Ends this process when a checkpoint is being written, before it has its name. The thread that writes
// gets less of a busy machine than the one that watches, which would miss it otherwise.
class KilledWhileWriting {
 public:
  explicit KilledWhileWriting(const std::string& checkpoint)
      : thread_([partial = checkpoint + ".partial", this] {
          while (!ends_) {
            std::error_code ignored;
            if (std::filesystem::exists(partial, ignored)) ::raise(SIGKILL);
          }
        }) {
    ::setpriority(PRIO_PROCESS, 0, 10);  // of this thread alone
  }
  ~KilledWhileWriting() {
    ends_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> ends_ = false;
  std::thread thread_;
};

// `to` becomes what `from` is, links and all; also where there is nothing.
void copy_folder(const std::string& from, const std::string& to) {
  namespace fs = std::filesystem;
  fs::remove_all(to);
  if (fs::exists(from)) {
    fs::copy(from, to, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  }
}

// On a machine that is busy with other work the killer may come too late: then the folder is put back
// as it was, for another try.
TEST(Ranks, ARankKilledInACheckpointLeavesTheOneBefore) {
  constexpr const char* kKilled = "MOE8_TEST_KILLED_RANK";
  constexpr int kTries = 8;
  const CommonFolder folder;
  const RunConfig unbroken = config_of(folder, "unbroken"), broken = config_of(folder, "broken");
  const CheckpointFolder checkpoints(RunFolder{broken.output.folder}.checkpoints());
  const auto step_of = [](int64_t killed) { return 4 + 2 * killed; };
  const auto run = [&](const std::string& killed) {  // "": nobody
    ProcessesOptions options = folder.options();
    options.environment.emplace_back(kKilled, killed);
    return run_processes(
        2,
        [&] {
          std::optional<KilledWhileWriting> kill;
          const char* rank = std::getenv(kKilled);
          if (rank && concat(launch_from_environment().rank) == rank) {
            kill.emplace(checkpoints.path_of(step_of(std::stoll(rank))));
          }
          go_on(broken, impatient());
        },
        options);
  };
  while (!folder.is_parent()) run("");  // whichever call it is, the variable says the rest
  train(unbroken);
  const std::string before = folder.path() + "before";
  for (const int64_t killed : {0, 1}) {
    copy_folder(broken.output.folder, before);
    std::vector<EndedProcess> ended = run(concat(killed));
    const auto too_late = [&] {
      return ended[static_cast<size_t>(killed)].is_good() ||
             checkpoints.entries().front().step >= step_of(killed);
    };
    for (int tries = 1; too_late() && tries < kTries; ++tries) {
      copy_folder(before, broken.output.folder);
      ended = run(concat(killed));
    }
    ASSERT_EQ(ended[static_cast<size_t>(killed)].signal, SIGKILL) << killed;
    EXPECT_EQ(ended[static_cast<size_t>(1 - killed)].exit_code, 1);
    EXPECT_EQ(checkpoints.entries().front().step,
              step_of(killed) - 1);  // the best, or the stop below
    if (killed == 1) break;
    // Two steps further, with the checkpoint that was missed.
    RunConfig further = broken;
    RunOptions options;
    options.existing = ExistingRun::RESUME;
    options.interrupted = [steps = 2]() mutable { return steps-- > 0 ? 0 : SIGTERM; };
    train(further, options);
    EXPECT_EQ(checkpoints.entries().front().step, 5);
  }
  expect_good(run(""));
  expect_same_run(unbroken, broken);
}

// What stands still is found by the same watch.
TEST(Ranks, AStoppedRankEndsTheOthers) {
  const CommonFolder folder;
  const RunConfig config = config_of(folder, "run");
  ProcessesOptions options = folder.options();
  options.limit_after_failure = std::chrono::seconds(1);
  const auto ended = run_processes(
      2,
      [&] {
        RunOptions run = impatient();
        run.interrupted = [steps = 0]() mutable {
          if (launch_from_environment().rank == 0 && ++steps == 3) ::raise(SIGSTOP);
          return 0;
        };
        go_on(config, run);
      },
      options);
  EXPECT_EQ(ended[1].exit_code, 1);
  EXPECT_THAT(ended[1].output, HasSubstr("moe8: rank 0: no sign of life for 3 s"));
}

// What lives and computes for ever is found by those that wait for it, and ends as well.
TEST(Ranks, ARankThatComputesForEverEndsAll) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.parallel.timeout_s = 4;
  const auto ended = run_processes(
      3,
      [&] {
        RunOptions run = impatient();
        run.interrupted = [steps = 0]() mutable {
          if (launch_from_environment().rank == 1 && ++steps == 3) {
            for (volatile bool for_ever = true; for_ever;) {
            }
          }
          return 0;
        };
        RunConfig own = config;
        own.training.accumulation = 3;
        go_on(own, run);
      },
      folder.options());
  if (!folder.is_parent()) return;
  for (const EndedProcess& process : ended) {
    EXPECT_EQ(process.exit_code, 1) << process.output;
    EXPECT_FALSE(process.is_late) << process.output;
  }
  EXPECT_THAT(ended[0].output, HasSubstr("moe8: rank 1: the others have waited for it for "));
  EXPECT_THAT(
      ended[0].output,
      HasSubstr(" s: it lives, but hangs or needs longer than parallel.timeout_s. All ranks "
                "end. Start the same command again with --resume"));
  EXPECT_THAT(ended[2].output, Not(HasSubstr("moe8:")));
}

// ---- what ends a run in one line --------------------------------------------------
// The output of all ranks of a run that must fail.
std::string output_of_failure(const CommonFolder& folder, int64_t world,
                              const std::function<void()>& body) {
  std::string all;
  for (const EndedProcess& process : run_processes(world, body, folder.options())) {
    EXPECT_EQ(process.exit_code, 1) << process.output;
    EXPECT_FALSE(process.is_late);
    for (size_t at = 0; (at = process.output.find("moe8: ", at)) != std::string::npos; ++at) {
      all += process.output.substr(at, process.output.find('\n', at) + 1 - at);
    }
  }
  return all;
}

int64_t this_rank() {
  return launch_from_environment().rank;
}

constexpr const char* kDifferent =
    " on rank 1. Start all ranks with the same command, program and files.\n";

TEST(Ranks, AnotherRecipeOnOneRankIsRefused) {
  const CommonFolder folder;
  const RunConfig config = config_of(folder, "run", this_rank() == 1 ? "fp8_rowwise" : "bf16");
  EXPECT_EQ(output_of_failure(folder, 2, [&] { go_on(config); }),
            concat("moe8: [train] training.recipe: expected 'bf16', as rank 0 has, on every rank, "
                   "got 'fp8_rowwise'",
                   kDifferent));
  EXPECT_FALSE(std::filesystem::exists(config.output.folder)) << "nothing was touched";
}

TEST(Ranks, AnotherSeedOnOneRankIsRefused) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.training.seed = 1 + this_rank();
  EXPECT_EQ(output_of_failure(folder, 2, [&] { go_on(config); }),
            concat("moe8: [train] training.seed: expected 1, as rank 0 has, on every rank, got 2",
                   kDifferent));
}

TEST(Ranks, AnotherTextOnOneRankIsRefused) {
  const CommonFolder folder;
  const TemporaryFolder texts;
  RunConfig config = config_of(folder, "run");
  if (this_rank() == 1) config.data.files = {texts.write("other", testing::tiny_text() + "!")};
  EXPECT_THAT(output_of_failure(folder, 2, [&] { go_on(config); }),
              HasSubstr("moe8: [train] text of data.files: expected "));
}

TEST(Ranks, ANumberThatDoesNotDivideTheBatchIsRefused) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.training.accumulation = 1;
  EXPECT_THAT(output_of_failure(folder, 3, [&] { go_on(config); }),
              HasSubstr("[train] training.batch_size: expected 1 x 2 sequences a step"));
}

TEST(Ranks, SumsThatRoundNothingAreRefused) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.training.gradient_sums = GradientSums::PRODUCTS;
  EXPECT_THAT(output_of_failure(folder, 2, [&] { go_on(config); }),
              HasSubstr("[train] training.gradient_sums: expected rounded for 2 processes"));
}

TEST(Ranks, ANumberThatDoesNotDivideTheExpertsIsRefused) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.parallel.expert = 4;
  EXPECT_THAT(output_of_failure(folder, 2, [&] { go_on(config); }), HasSubstr("expert"));
}

TEST(Ranks, AFullDiskOnOneRankIsOneLine) {
  const CommonFolder folder;
  const RunConfig config = config_of(folder, "run");
  const std::string output = output_of_failure(folder, 2, [&] {
    std::optional<testing::FullDisk> full;
    if (launch_from_environment().rank == 1) full.emplace();
    go_on(config);
  });
  EXPECT_THAT(output, HasSubstr("moe8: rank 1: [save_safetensors] "));
  EXPECT_EQ(std::ranges::count(output, '\n'), 1) << output;
  EXPECT_FALSE(std::filesystem::exists(config.output.folder + "/checkpoints/step-00000002"));
  EXPECT_FALSE(
      std::filesystem::exists(config.output.folder + "/checkpoints/step-00000002.partial"));
}

TEST(Ranks, AProfileIsOfTheFirst) {
  const CommonFolder folder;
  RunConfig one = config_of(folder, "one"), two = config_of(folder, "two");
  for (RunConfig* config : {&one, &two}) config->training.steps = 9;
  if (folder.is_parent()) train(one);
  RunOptions options;
  options.profiled_steps = 2;
  expect_good(run_processes(
      2, [&] { go_on(two, options); }, folder.options()));
  expect_same_run(one, two);
  EXPECT_THAT(bytes_of(two.output.folder + "/profile.txt"), HasSubstr("ms a step"));
  EXPECT_THAT(bytes_of(two.output.folder + "/trace.json"), HasSubstr("gloo"));
}

TEST(Ranks, OneProcessDoesNotSpreadExperts) {
  const CommonFolder folder;
  RunConfig config = config_of(folder, "run");
  config.parallel.expert = 2;
  EXPECT_THAT(testing::error_of([&] { train(config); }),
              HasSubstr("[train] parallel.expert: expected 1 in one process, got 2. Start it with: "
                        "torchrun --no-python --nproc-per-node 2 moe8 train"));
}

}  // namespace
}  // namespace moe8
