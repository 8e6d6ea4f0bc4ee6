// SPDX-License-Identifier: BSD-3-Clause
// Runs of two GPUs by NCCL beside one of them. Skipped where there are none.
#include <c10/cuda/CUDAFunctions.h>
#include <gtest/gtest.h>

#include "device/cuda_backend.h"
#include "nn/transformer_parts.h"
#include "shard/sharded_model.h"
#include "testing/processes.h"
#include "train/rank_runs.h"

namespace moe8 {
namespace {

using testing::all_tensor;
using testing::CommonFolder;
using testing::config_of;
using testing::config_of_heads;
using testing::expect_good;
using testing::expect_near;
using testing::expect_same_run;
using testing::expect_steps_of_one_process;
using testing::go_on;
using testing::in_processes;
using testing::metrics_of;
using testing::ProcessesOptions;
using testing::run_processes;

const std::pair<std::string, std::string> kNoMulticast{"NCCL_NVLS_ENABLE", "0"};

class RanksOnGpus : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
    if (c10::cuda::device_count() < 2) GTEST_SKIP() << "no GPU for these tests: two";
  }
  void train_both(const RunConfig& one, const RunConfig& two) const {
    if (folder_.is_parent()) train(one);
    ProcessesOptions options = folder_.options();
    options.environment.push_back(kNoMulticast);
    expect_good(run_processes(
        2, [&] { go_on(two); }, options));
  }
  void expect_near_runs(const RunConfig& one, const RunConfig& two) const {
    train_both(one, two);
    if (!folder_.is_parent()) return;
    const auto [a, b] = metrics_of(one, two);
    expect_near(a, b);
  }
  const CommonFolder folder_;
};

TEST_P(RanksOnGpus, DataParallelIsOneGpuBitForBit) {
  RunConfig one = config_of(folder_, "one", GetParam()),
            two = config_of(folder_, "two", GetParam());
  train_both(one, two);
  expect_same_run(one, two);
}

TEST_P(RanksOnGpus, ExpertsOverBothAreNearlyOneGpu) {
  const RunConfig one = config_of(folder_, "one", GetParam());
  RunConfig two = config_of(folder_, "two", GetParam());
  two.parallel.expert = 2;
  expect_near_runs(one, two);
}

TEST_P(RanksOnGpus, DenseWeightsOverBothAreNearlyOneGpu) {
  const RunConfig one = config_of_heads(folder_, "one", GetParam());
  RunConfig two = config_of_heads(folder_, "two", GetParam());
  two.parallel.tensor = 2;
  expect_near_runs(one, two);
}

INSTANTIATE_TEST_SUITE_P(Cuda, RanksOnGpus, ::testing::Values("bf16", "fp8_rowwise"));

class PartsOnGpus : public RanksOnGpus {};

TEST_F(PartsOnGpus, TensorParallelTransformerIsThatOfOneGpu) {
  in_processes({2}, [](Parallel& p) { testing::compare_with_whole_transformer(p); }, all_tensor,
               {.device = at::kCUDA, .environment = {kNoMulticast}});
}

TEST_F(PartsOnGpus, ShardedOptimizerStepsAsOneGpuBitForBit) {
  in_processes({2},
               [](Parallel& p) {
                 expect_steps_of_one_process(
                     p, {{UpdateRule::ADAMW, at::kBFloat16, MomentDtype::LIKE_WEIGHTS, true},
                         {UpdateRule::ADAMW, at::kBFloat16, MomentDtype::BF16, false},
                         {UpdateRule::ADAMW, at::kFloat, MomentDtype::BF16, true}});
               },
               {}, {.device = at::kCUDA, .environment = {kNoMulticast}});
}

}  // namespace
}  // namespace moe8
