// SPDX-License-Identifier: BSD-3-Clause
// Experts over two GPUs by NCCL against one process on one of them. Skipped where there are none.
#include <c10/cuda/CUDAFunctions.h>
#include <torch/torch.h>

#include "device/cuda_backend.h"
#include "experts/parallel_problem.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::all_experts;
using testing::compare_with_one_process;
using testing::compare_with_watched;
using testing::ExpertsShape;
using testing::in_processes;
using testing::parallel_recipes;
using testing::ProcessesOptions;
using testing::World;
using testing::world_of;

World on(const at::Device& device, World world) {
  testing::ExpertsProblem& p = world.p;
  for (at::Tensor* t : {&p.x, &p.w1, &p.w3, &p.w2, &p.experts, &p.scores, &p.upstream}) {
    *t = t->detach().to(device);
  }
  return world;
}

class ExpertsOnGpus : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
    if (c10::cuda::device_count() < 2) GTEST_SKIP() << "no GPU for these tests: two";
  }
  const ProcessesOptions options_{.device = at::kCUDA, .environment = {{"NCCL_NVLS_ENABLE", "0"}}};
};

TEST_F(ExpertsOnGpus, EqualOneProcessThatAddsUpPerRank) {
  in_processes(
      {2},
      [](Parallel& p) {
        const ExpertsShape shape{
            .tokens = 512, .top_k = 4, .experts = 16, .dim = 256, .hidden = 128};
        for (const testing::Recipe& recipe : parallel_recipes()) {
          for (const TokenWire wire :
               {TokenWire::AUTO, TokenWire::VALUES, TokenWire::CODES_BOTH_WAYS}) {
            if (wire == TokenWire::CODES_BOTH_WAYS && !recipe.config) continue;
            World world = on(p.device(), world_of(2, shape, 1));
            compare_with_one_process(p.expert(), world, recipe, wire);
            world.tokens = {0, 512};
            compare_with_one_process(p.expert(), world, recipe, wire);
            world.p.experts.fill_(15);
            compare_with_one_process(p.expert(), world, recipe, wire);
          }
        }
      },
      all_experts, options_);
}

TEST_F(ExpertsOnGpus, BeingWatchedChangesNoBit) {
  in_processes(
      {2},
      [](Parallel& p) {
        const ExpertsShape shape{
            .tokens = 640, .top_k = 4, .experts = 8, .dim = 256, .hidden = 192};
        const World world = on(p.device(), world_of(2, shape, 1));
        for (const testing::Recipe& recipe : parallel_recipes()) {
          if (recipe.config) compare_with_watched(p.expert(), world, recipe);
        }
      },
      all_experts, options_);
}

TEST_F(ExpertsOnGpus, WhatIsSentByNccl) {
  in_processes(
      {2},
      [](Parallel& p) {
        const Group& world = p.world();
        const at::Tensor x =
            at::full({4, 3}, world.rank() + 1, at::device(p.device()).dtype(at::kFloat));
        const std::vector<int64_t> in{1, 3},
            out = world.rank() == 0 ? std::vector<int64_t>{1, 1} : std::vector<int64_t>{3, 3};
        const at::Tensor came = all_to_all(world, x, in, out);
        EXPECT_TRUE(came.narrow(0, 0, out[0]).eq(1).all().item<bool>());
        EXPECT_TRUE(came.narrow(0, out[0], out[1]).eq(2).all().item<bool>());
        EXPECT_TRUE(all_gather(world, x).narrow(0, 4, 4).eq(2).all().item<bool>());
        EXPECT_TRUE(reduce_scatter(world, x).eq(3).all().item<bool>());
        const at::Tensor sum = x.clone();
        all_reduce_(world, sum);
        EXPECT_TRUE(sum.eq(3).all().item<bool>());
        const at::Tensor codes = x.to(at::kFloat8_e4m3fn);
        broadcast_(world, codes, 1);
        EXPECT_TRUE(codes.to(at::kFloat).eq(2).all().item<bool>());
        barrier(world);
        const at::Tensor on_cpu = at::full({2}, world.rank() + 1);
        all_reduce_(world, on_cpu);
        EXPECT_TRUE(on_cpu.equal(at::full({2}, int64_t{3})));
      },
      all_experts, options_);
}

}  // namespace
}  // namespace moe8
