// SPDX-License-Identifier: BSD-3-Clause
// Adapters, frozen parameters and rates by name on several ranks: the run of one process, and checkpoints
// that any number of ranks goes on with.
#include <csignal>
#include <filesystem>

#include "moe8/safetensors.h"
#include "testing/compare.h"
#include "testing/processes.h"
#include "train/rank_runs.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

using testing::bytes_of;
using testing::CommonFolder;
using testing::config_of;
using testing::config_of_heads;
using testing::error_of;
using testing::expect_good;
using testing::expect_near;
using testing::expect_same_run;
using testing::go_on;
using ::testing::HasSubstr;
using testing::metrics_of;
using testing::run_processes;

void add_adapters(RunConfig& config) {
  config.lora = {.rank = 4, .alpha = 8};
  config.optimizer.learning_rate = config.optimizer.min_learning_rate = 1e-2;
  config.optimizer.rates = {{"re:.*\\.experts\\..*", 0.5}};
}

void keep_codes(RunConfig& config) {
  add_adapters(config);
  config.lora.base = LoraBase::CODES;
  config.training.activation_checkpointing = Recompute::FULL;
}

void freeze_some(RunConfig& config) {
  config.optimizer.frozen = {"tok_embeddings.weight", "re:.*\\.experts\\.w2",
                             "re:.*attention\\.w[qv].*"};
  config.optimizer.rates = {{"re:.*\\.experts\\.w1", 0.25}, {"norm.weight", 2}};
}

struct Part {
  const char* name;
  void (*choose)(RunConfig&);
  const char* recipe;
};

class TrainedInPart : public ::testing::TestWithParam<Part> {
 protected:
  RunConfig config(const std::string& name) const {
    RunConfig made = config_of(folder_, name, GetParam().recipe);
    GetParam().choose(made);
    return made;
  }
  void run(const RunConfig& config, int64_t world, int steps = 100) const {
    expect_good(run_processes(
        world,
        [&] {
          RunOptions options;
          options.interrupted = [left = steps]() mutable { return left-- > 0 ? 0 : SIGTERM; };
          go_on(config, options);
        },
        folder_.options()));
  }

  CommonFolder folder_;
};

TEST_P(TrainedInPart, IsTheRunOfOneProcess) {
  const RunConfig one = config("one");
  if (folder_.is_parent()) train(one);
  for (const int64_t world : {2, 4}) {
    const RunConfig several = config(concat("of-", world));
    run(several, world);
    expect_same_run(one, several);
  }
}

// Two ranks begin, one does the next step, four the rest.
TEST_P(TrainedInPart, GoesOnWithAnotherNumberOfRanks) {
  const RunConfig unbroken = config("unbroken"), broken = config("broken");
  if (folder_.is_parent()) train(unbroken);
  run(broken, 2, 2);
  run(broken, 1, 1);
  run(broken, 4);
  expect_same_run(unbroken, broken);
}

// An expert's gradient is one product over the tokens of its group's ranks: last digits differ.
TEST_P(TrainedInPart, OverExpertsIsNearlyTheRunOfOneProcess) {
  const RunConfig one = config("one");
  if (folder_.is_parent()) train(one);
  for (const int64_t world : {2, 4}) {
    RunConfig several = config(concat("of-", world));
    several.parallel.expert = 2;
    run(several, world);
    if (!folder_.is_parent()) continue;
    const auto [a, b] = metrics_of(one, several);
    expect_near(a, b);
    if (HasFatalFailure()) return;
    EXPECT_NEAR(a[0].loss, b[0].loss, 1e-4 * a[0].loss);
  }
}

// What four ranks with half of the experts wrote, read by others: of what stayed and what was trained.
TEST_P(TrainedInPart, IsTheSameBitsUnderAnotherSplit) {
  RunConfig config = this->config("run");
  config.parallel.expert = 2;
  config.training.steps = 2;
  run(config, 4);
  const RunFolder left{config.output.folder};
  const std::string written = folder_.is_parent() ? bytes_of(left.model()) : "";
  for (const int64_t experts : {1, 4}) {
    if (folder_.is_parent()) {
      std::filesystem::remove(left.model());
      std::filesystem::remove(left.result());
    }
    config.parallel.expert = experts;
    run(config, experts);
    if (!folder_.is_parent()) continue;
    EXPECT_TRUE(bytes_of(left.model()) == written) << experts << " ranks";
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, TrainedInPart,
                         ::testing::Values(Part{"adapters", add_adapters, "bf16"},
                                           Part{"adapters_fp8", add_adapters, "fp8_rowwise"},
                                           Part{"codes", keep_codes, "fp8_rowwise"},
                                           Part{"frozen", freeze_some, "mxfp8_rceil"}),
                         [](const auto& of) { return std::string(of.param.name); });

TEST(RanksTrainInPart, FrozenPartsOfATensorGroup) {
  const CommonFolder folder;
  RunConfig one = config_of_heads(folder, "one", "bf16"),
            two = config_of_heads(folder, "two", "bf16");
  freeze_some(one);
  freeze_some(two);
  two.parallel.tensor = 2;
  if (folder.is_parent()) train(one);
  expect_good(run_processes(
      4, [&] { go_on(two); }, folder.options()));
  if (!folder.is_parent()) return;
  const auto [a, b] = metrics_of(one, two);
  expect_near(a, b);
  const auto first = load_safetensors(RunFolder{one.output.folder}.model());
  const auto second = load_safetensors(RunFolder{two.output.folder}.model());
  for (const char* name : {"layers.0.attention.wq.weight", "layers.1.moe.experts.w2"}) {
    EXPECT_TRUE(testing::same_bits(first.at(name), second.at(name))) << name;
  }
}

TEST(RanksTrainInPart, AdaptersBesideATensorGroupAreRefused) {
  const CommonFolder folder;
  RunConfig config = config_of_heads(folder, "run", "bf16");
  add_adapters(config);
  config.parallel.tensor = 2;
  EXPECT_THAT(error_of([&] { config.validate(); }),
              HasSubstr("parallel.tensor: expected 1 beside lora"));
}

}  // namespace
}  // namespace moe8
