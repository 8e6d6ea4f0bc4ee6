// SPDX-License-Identifier: BSD-3-Clause
// The estimate of a step's time beside what two H200s took, and what it depends on.
#include "train/plan/step_time.h"

#include <gtest/gtest.h>

namespace moe8 {
namespace {

constexpr double kNetwork = 50e9;

RunConfig four_billion() {
  return load_run_config(MOE8_CONFIGS "/4b_bench.toml");
}

StepTime time_of(const RunConfig& config, int64_t world, double network = kNetwork,
                 int64_t machine = 8) {
  return plan_step_time(config, plan_rank(config, world, machine), h200_rates(config, network));
}

// Tokens a second of docs/distributed.md, with four sequences on each GPU.
TEST(StepTime, IsNearWhatWasMeasured) {
  RunConfig config = four_billion();
  const auto tokens_per_s = [&](int64_t world) {
    config.training.batch_size = 4 * world;
    return double(config.training.batch_size * config.training.seq_len) /
           time_of(config, world).total() * 1e3;
  };
  EXPECT_NEAR(tokens_per_s(1), 78'600, 0.05 * 78'600);
  EXPECT_NEAR(tokens_per_s(2), 144'600, 0.05 * 144'600);
  config.parallel.expert = 2;
  EXPECT_NEAR(tokens_per_s(2), 153'800, 0.05 * 153'800);
}

TEST(StepTime, WaitsForWhatNothingCovers) {
  RunConfig config = four_billion();
  config.training.batch_size = 16;
  config.parallel.expert = 16;
  const StepTime within = time_of(config, 16, kNetwork, 16), two = time_of(config, 16);
  EXPECT_EQ(within.compute, two.compute);
  EXPECT_GT(two.tokens, 1.5 * within.tokens);  // half of the ranks are behind a slower link
  EXPECT_EQ(within.activations, 0);
  EXPECT_GT(time_of(config, 16, kNetwork / 10).gradients, two.gradients);
  config.training.activation_checkpointing = Recompute::FULL;
  EXPECT_GT(time_of(config, 16).compute, two.compute);
}

}  // namespace
}  // namespace moe8
