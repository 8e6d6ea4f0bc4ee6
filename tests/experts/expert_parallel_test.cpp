// SPDX-License-Identifier: BSD-3-Clause
// Experts over ranks against one process, in real processes on Gloo: the result and all gradients.
#include "moe8/expert_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "base/check.h"
#include "experts/implementations.h"
#include "experts/parallel_problem.h"
#include "routing/rows.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::all_experts;
using testing::compare_with_one_process;
using testing::compare_with_watched;
using testing::expect_equal;
using testing::ExpertsProblem;
using testing::ExpertsShape;
using testing::in_parallel;
using testing::in_processes;
using testing::leaf;
using testing::parallel_recipes;
using testing::part_of;
using testing::Recipe;
using testing::Results;
using testing::World;
using testing::world_of;

TEST(ExpertParallel, EqualsOneProcessThatAddsUpPerRank) {
  in_processes(
      {1, 2, 4},
      [](Parallel& p) {
        const int64_t size = p.expert().size();
        for (const Recipe& recipe : parallel_recipes()) {
          for (const TokenWire wire :
               {TokenWire::AUTO, TokenWire::VALUES, TokenWire::CODES_BOTH_WAYS}) {
            if (wire == TokenWire::CODES_BOTH_WAYS && !recipe.config) continue;
            World world = world_of(
                size, {.tokens = 96, .top_k = 3, .experts = 8, .dim = 64, .hidden = 32}, 1);
            compare_with_one_process(p.expert(), world, recipe, wire);
            // Ranks with different numbers of tokens, one with none.
            world.tokens.assign(static_cast<size_t>(size), 0);
            world.tokens.back() = 96 - 7 * (size - 1);
            for (int64_t r = 0; r + 1 < size; ++r) world.tokens[static_cast<size_t>(r)] = 7;
            if (size == 4) world.tokens[0] = 0, world.tokens[1] = 14;
            world.p.placement = ScorePlacement::INPUT;
            compare_with_one_process(p.expert(), world, recipe, wire);
          }
        }
        const World in_float = world_of(
            size, {.tokens = 32, .top_k = 2, .experts = 4, .dim = 32, .hidden = 32}, 2, at::kFloat);
        compare_with_one_process(p.expert(), in_float, parallel_recipes()[0], TokenWire::AUTO);
      },
      all_experts);
}

TEST(ExpertParallel, ExpertsRanksAndBatchesWithoutTokens) {
  in_processes(
      {1, 2, 4},
      [](Parallel& p) {
        const int64_t size = p.expert().size();
        const ExpertsShape shape{.tokens = 32, .top_k = 2, .experts = 8, .dim = 32, .hidden = 32};
        for (const Recipe& recipe : parallel_recipes()) {
          World world = world_of(size, shape, 3);
          world.p.experts.fill_(7);  // all tokens to one expert, twice
          compare_with_one_process(p.expert(), world, recipe, TokenWire::AUTO);
          world.p.experts.fill_(-1);  // nowhere
          compare_with_one_process(p.expert(), world, recipe, TokenWire::AUTO);
          World nothing =
              world_of(size, {.tokens = 0, .top_k = 2, .experts = 8, .dim = 32, .hidden = 32}, 4);
          compare_with_one_process(p.expert(), nothing, recipe, TokenWire::AUTO);
        }
      },
      all_experts);
}

// Against the plain layer: what the roundings of each rank's sum can do. Where a token's experts live on
// one rank there is no such rounding.
TEST(ExpertParallel, BeingWatchedChangesNoBit) {
  in_processes(
      {2},
      [](Parallel& p) {
        const World world =
            world_of(2, {.tokens = 320, .top_k = 3, .experts = 4, .dim = 64, .hidden = 64}, 1);
        for (const Recipe& recipe : parallel_recipes()) {
          if (recipe.config) compare_with_watched(p.expert(), world, recipe);
        }
      },
      all_experts);
}

TEST(ExpertParallel, DiffersFromThePlainLayerByTheRoundingOfSums) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const int64_t size = p.expert().size(), rank = p.expert().rank();
        World world =
            world_of(size, {.tokens = 64, .top_k = 4, .experts = 8, .dim = 32, .hidden = 32}, 5);
        const Recipe bf16 = parallel_recipes()[0];
        const ExpertsProblem& q = world.p;
        const Results mine = in_parallel(p.expert(), world, bf16, TokenWire::AUTO);
        const at::Tensor plain =
            world.of_rank(moe_experts(q.x, q.w1, q.w3, q.w2, q.experts, q.scores), rank);
        at::Tensor sizes_of_parts = plain.to(at::kFloat).abs();
        for (int64_t r = 0; r < size; ++r) {
          const int64_t own = 8 / size;
          sizes_of_parts =
              sizes_of_parts +
              world
                  .of_rank(moe_experts(q.x, part_of(q.w1, r, size), part_of(q.w3, r, size),
                                       part_of(q.w2, r, size), q.experts - r * own, q.scores),
                           rank)
                  .abs();
        }
        const at::Tensor off = (mine.out.to(at::kFloat) - plain.to(at::kFloat)).abs();
        EXPECT_TRUE(off.le(sizes_of_parts * 0x1p-8).all().item<bool>());
        EXPECT_GT(off.max().item<float>(), 0);

        world.p.experts = world.p.experts.narrow(1, 0, 1).floor_divide(2) * 2 + at::arange(2);
        world.p.scores = leaf(world.p.scores.detach().narrow(1, 0, 2));
        const Results on_one_rank = in_parallel(p.expert(), world, bf16, TokenWire::AUTO);
        expect_equal(on_one_rank.out,
                     world.of_rank(moe_experts(q.x, q.w1, q.w3, q.w2, q.experts, q.scores), rank),
                     "out");
      },
      all_experts);
}

// What a rank knows of the tokens that came: rows in no group, of other ranks' experts, are not made.
TEST(ExpertParallel, RowsInNoGroupNeedNotBeThere) {
  ExpertsProblem p = testing::experts_problem(
      {.tokens = 48, .top_k = 3, .experts = 4, .dim = 64, .hidden = 32}, at::kBFloat16, 6);
  p.experts = p.experts.masked_fill(p.experts.ge(2), -1);
  const ExpertOrder all = expert_order(p.experts, 4);
  const ExpertOrder some = only_in_groups(all, all.offs[3].item<int64_t>());
  ASSERT_LT(some.rows(), all.rows());
  for (const Recipe& recipe : parallel_recipes()) {
    for (const auto which : {ExpertsImplementation::FUSED, ExpertsImplementation::UNFUSED}) {
      SCOPED_TRACE(recipe.name);
      std::vector<Results> results;
      for (const ExpertOrder& order : {all, some}) {
        const at::Tensor x = leaf(p.x), scores = leaf(p.scores), w1 = leaf(p.w1), w3 = leaf(p.w3),
                         w2 = leaf(p.w2);
        const ArrivedTokens tokens{.x = x,
                                   .codes = std::nullopt,
                                   .experts = p.experts,
                                   .scores = scores,
                                   .order = order,
                                   .send_x_grad = {}};
        const at::Tensor out =
            moe_experts_of(tokens, w1, w3, w2, {.config = recipe.config, .implementation = which});
        out.backward(p.upstream);
        results.push_back({out.detach(), x.grad(), scores.grad(), w1.grad(), w3.grad(), w2.grad()});
      }
      expect_equal(results[1].out, results[0].out, "out");
      expect_equal(results[1].x, results[0].x, "gradient of x");
      expect_equal(results[1].scores, results[0].scores, "gradient of scores");
      expect_equal(results[1].w1, results[0].w1, "gradient of w1");
      expect_equal(results[1].w3, results[0].w3, "gradient of w3");
      expect_equal(results[1].w2, results[0].w2, "gradient of w2");
    }
  }
}

// The fused layer sends each rank's rows as they are made; what it returns only stands for them.
TEST(ExpertParallel, TheResultTravelsWhileItIsMade) {
  in_processes(
      {1, 3},
      [](Parallel& p) {
        const Group& group = p.expert();
        const World world = world_of(
            group.size(), {.tokens = 60, .top_k = 2, .experts = 6, .dim = 64, .hidden = 32}, 9);
        const int64_t rank = group.rank();
        const auto own = [&](const at::Tensor& w) { return part_of(w, rank, group.size()); };
        for (const auto which : {ExpertsImplementation::FUSED, ExpertsImplementation::UNFUSED}) {
          const TokenExchange exchange(group, world.of_rank(world.p.experts, rank), 6);
          const ArrivedTokens tokens =
              receive_tokens(exchange, world.of_rank(world.p.x, rank),
                             world.of_rank(world.p.scores, rank), std::nullopt, /*as_codes=*/true);
          const at::Tensor rows = moe_experts_of(tokens, own(world.p.w1), own(world.p.w3),
                                                 own(world.p.w2), {.implementation = which});
          EXPECT_EQ(rows.stride(1) == 0, which == ExpertsImplementation::FUSED);
          EXPECT_EQ(rows.size(0), exchange.received());
          const at::Tensor out = combine_arrived(exchange, tokens, rows, {});
          EXPECT_TRUE(out.isfinite().all().item<bool>());
        }
      },
      all_experts);
}

// Converted parameters decide what travels, and codes are fewer bytes than values.
TEST(TokenExchange, TravelsEachTokenOncePerRank) {
  in_processes(
      {4},
      [](Parallel& p) {
        const Group& group = p.expert();
        const at::Tensor experts =
            at::tensor({0, 1, 5, 2, 3, 2, 7, 6, -1}, at::kLong).view({3, 3});  // of 8, by 4 ranks
        const TokenExchange exchange(group, experts, 8);
        EXPECT_EQ(exchange.sent(), 2 + 1 + 1);  // ranks {0, 2}, {1}, {3}
        const at::Tensor x = (at::arange(3) + 10 * group.rank()).to(at::kFloat).view({3, 1});
        const ReceivedTokens got = exchange.dispatch(x, {});
        EXPECT_EQ(exchange.received(), 4);
        const int64_t token = std::vector<int64_t>{0, 1, 0, 2}[static_cast<size_t>(group.rank())];
        EXPECT_TRUE(got.x.equal((at::arange(4) * 10 + token).to(at::kFloat).view({4, 1})));
        const std::vector<at::Tensor> local{at::tensor({0, 1, -1}), at::tensor({0, 1, 0}),
                                            at::tensor({-1, -1, 1}), at::tensor({1, 0, -1})};
        EXPECT_TRUE(got.experts.to(at::kLong).equal(
            local[static_cast<size_t>(group.rank())].expand({4, 3})));
        EXPECT_FALSE(got.scores.defined());
        EXPECT_TRUE(exchange.combine(got.x * (group.rank() + 1))
                        .equal(x * at::tensor({4.f, 2.f, 4.f}).view({3, 1})));
      },
      all_experts);
}

std::string error_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const c10::Error& error) {
    return message_of(error);
  }
  return "no error";
}

TEST(TokenExchange, WrongArgumentsAreErrors) {
  in_processes(
      {2},
      [](Parallel& p) {
        const Group& group = p.expert();
        const at::Tensor experts = at::zeros({3, 2}, at::kLong);
        EXPECT_EQ(
            error_of([&] { TokenExchange(group, experts, 5); }),
            "[token_exchange] n_experts: expected a multiple of 2, the size of group 'expert', "
            "got 5");
        EXPECT_EQ(
            error_of([&] { TokenExchange(group, experts.to(at::kFloat), 4); }),
            "[token_exchange] experts: expected int64 or int32 [T, k], got Float [3, 2] on cpu");
        const TokenExchange exchange(group, experts, 4);
        EXPECT_EQ(
            error_of([&] {
              exchange.dispatch(at::ones({2, 4}), {});
            }),
            "[token_exchange] x: expected [3, d] on cpu to fit experts of [3, 2], got Float [2, "
            "4] on cpu");
        MXFP8GroupedMMConfig high;
        high.wgrad_with_hp = true;
        EXPECT_THAT(error_of([&] {
                      exchange.dispatch(at::ones({3, 4}), {}, Config(high));
                    }),
                    ::testing::HasSubstr("the gradients of its weights read these rows in high"));
        const at::Tensor w = at::ones({3, 4, 4});
        EXPECT_EQ(
            error_of([&] {
              moe_experts_parallel(exchange, at::ones({3, 4}), w, w, w, {});
            }),
            "[moe_experts_parallel] w1: expected the 2 experts of this rank, of 4 by 2 ranks, "
            "got Float [3, 4, 4] on cpu");
        // Ranks that do not agree about the experts.
        EXPECT_EQ(
            error_of([&] {
              const TokenExchange other(group, at::zeros({3, 2 + group.rank()}, at::kLong), 4);
              other.sent();
            }),
            concat("[token_exchange] experts: expected ", 2 + group.rank(),
                   " of 4 experts on every rank of group 'expert', got ", 3 - group.rank(),
                   " of 4 from rank ", 1 - group.rank()));
      },
      all_experts);
}

}  // namespace
}  // namespace moe8
