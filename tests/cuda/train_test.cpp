// SPDX-License-Identifier: BSD-3-Clause
// Training on a GPU: close to the CPU's losses, the same bits twice, and after a checkpoint.
// Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "train/plan/memory_plan.h"
#include "train/tiny_run.h"
#include "train/trainer.h"
#include "train/training_device.h"

namespace moe8 {
namespace {

using testing::repeatable;
using testing::TemporaryFolder;
using testing::tiny_config;

class TrainOnGpu : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (training_device(TrainingDevice::AUTO).is_cpu()) GTEST_SKIP() << "no GPU for these tests";
  }
};

std::vector<StepMetrics> metrics_of(const RunConfig& config) {
  return repeatable(RunFolder{config.output.folder}.metrics());
}

TEST_P(TrainOnGpu, LearnsAsOnTheCpuAndRepeatsItself) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "gpu");
  config.training.recipe = GetParam();
  const RunResult gpu = train(config);
  EXPECT_EQ(load_run_config(folder / "gpu/run.toml").training.device, TrainingDevice::CUDA);
  EXPECT_GT(gpu.peak_memory, 100'000);
  const auto losses = metrics_of(config);

  config.output.folder = folder / "again";
  train(config);
  EXPECT_EQ(metrics_of(config), losses);

  config.output.folder = folder / "cpu";
  config.training.device = TrainingDevice::CPU;
  train(config);
  const auto on_cpu = metrics_of(config);
  ASSERT_EQ(on_cpu.size(), losses.size());
  EXPECT_NEAR(on_cpu.front().loss, losses.front().loss, 0.02);
  EXPECT_NEAR(on_cpu.back().loss, losses.back().loss, 0.15);
  EXPECT_LT(losses.back().loss, losses.front().loss - 1);
}

TEST_P(TrainOnGpu, GoesOnAfterACheckpointBitForBit) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "whole");
  config.training.recipe = GetParam();
  config.checkpoint.interval = 5;
  train(config);
  const auto whole = metrics_of(config);

  config.output.folder = folder / "broken";
  int steps = 0;
  RunOptions stop;
  stop.interrupted = [&] { return ++steps > 7 ? 15 : 0; };
  EXPECT_EQ(train(config, stop).steps, 7);
  RunOptions resume;
  resume.existing = ExistingRun::RESUME;
  train(config, resume);
  EXPECT_EQ(metrics_of(config), whole);
}

// The captured steps lie between looks at the numerics, and a run may go on with another setting.
void expect_one_result(const std::string& recipe, GradientSums sums) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "without");
  config.training.recipe = recipe;
  config.training.accumulation = 2;
  config.training.gradient_sums = sums;
  config.numerics.interval = 6;
  config.checkpoint.interval = 5;
  config.training.cuda_graph = CudaGraphs::OFF;
  train(config);
  const auto without = metrics_of(config);

  config.output.folder = folder / "with";
  config.training.cuda_graph = CudaGraphs::ON;
  train(config);
  EXPECT_EQ(metrics_of(config), without);

  config.output.folder = folder / "recomputed";
  config.training.activation_checkpointing = Recompute::FULL;
  train(config);
  EXPECT_EQ(metrics_of(config), without);
  config.training.activation_checkpointing = Recompute::NONE;

  config.output.folder = folder / "broken";
  int steps = 0;
  RunOptions stop;
  stop.interrupted = [&] { return ++steps > 7 ? 15 : 0; };
  EXPECT_EQ(train(config, stop).steps, 7);
  config.training.cuda_graph = CudaGraphs::OFF;
  RunOptions resume;
  resume.existing = ExistingRun::RESUME;
  train(config, resume);
  EXPECT_EQ(metrics_of(config), without);
}

TEST_P(TrainOnGpu, AGraphGivesTheSameBits) {
  expect_one_result(GetParam(), GradientSums::ROUNDED);
}

TEST_P(TrainOnGpu, AGraphGivesTheSameBitsWhereProductsAddGradients) {
  expect_one_result(GetParam(), GradientSums::PRODUCTS);
}

// docs/plan.md, section "On a GPU".
TEST_P(TrainOnGpu, TakesTheMemoryThatWasPlanned) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "memory");
  config.model.dim = config.model.hidden_dim = config.model.dense_hidden_dim = 512;
  config.model.n_layers = 6;
  config.model.n_heads = config.model.n_kv_heads = 8;
  config.model.n_experts = 16;
  config.model.max_seq_len = config.training.seq_len = 512;
  config.training.batch_size = 32;
  config.training.steps = 4;
  std::string text;
  while (text.size() < (1 << 20)) text += testing::tiny_text();
  config.data.files = {folder.write("long.txt", text)};
  config.training.recipe = GetParam();
  config.training.device = TrainingDevice::CUDA;
  config.training.cuda_graph = CudaGraphs::OFF;  // they keep memory of their own
  config.training.validation_interval = 0;
  config.numerics.interval = 0;
  for (const Recompute recompute : {Recompute::NONE, Recompute::SELECTIVE, Recompute::FULL}) {
    config.training.activation_checkpointing = recompute;
    config.output.folder = folder / std::string(to_string(recompute));
    const double planned = plan_memory(config).peak();
    EXPECT_NEAR(double(train(config).peak_memory) / planned, 1, 0.03) << to_string(recompute);
  }
}

INSTANTIATE_TEST_SUITE_P(Recipes, TrainOnGpu,
                         ::testing::Values("bf16", "fp8_rowwise", "mxfp8_rceil"));

}  // namespace
}  // namespace moe8
