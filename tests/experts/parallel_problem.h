// SPDX-License-Identifier: BSD-3-Clause
// A layer of experts over ranks, and what one process makes of the same tokens: the result and all
// gradients, bit for bit.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <optional>
#include <variant>
#include <vector>

#include "base/plain_text.h"
#include "experts/problem.h"
#include "moe8/expert_parallel.h"
#include "moe8/float8.h"
#include "moe8/mx.h"

namespace moe8::testing {

inline ParallelLayout all_experts(int64_t world) {
  return {.expert = world};
}

struct Recipe {
  const char* name;
  std::optional<Config> config;
};

inline std::vector<Recipe> parallel_recipes() {
  return {{"bf16", std::nullopt},
          {"fp8_rowwise", FP8GroupedMMConfig{}},
          {"mxfp8_rceil", MXFP8GroupedMMConfig{}}};
}

// The tensors of all ranks; each makes the same.
struct World {
  ExpertsProblem p;             // on any device
  std::vector<int64_t> tokens;  // of each rank

  int64_t first_token(int64_t rank) const {
    int64_t first = 0;
    for (int64_t r = 0; r < rank; ++r) first += tokens[static_cast<size_t>(r)];
    return first;
  }
  at::Tensor of_rank(const at::Tensor& t, int64_t rank) const {
    return t.detach().narrow(0, first_token(rank), tokens[static_cast<size_t>(rank)]).clone();
  }
};

struct Results {
  at::Tensor out, x, scores, w1, w3, w2;
};

inline at::Tensor leaf(const at::Tensor& t) {
  return t.detach().clone().requires_grad_();
}

inline at::Tensor part_of(const at::Tensor& w, int64_t rank, int64_t size) {
  const int64_t own = w.size(0) / size;
  return leaf(w.detach().narrow(0, rank * own, own));
}

inline ExpertsOptions options_of(const ExpertsProblem& p, const Recipe& recipe) {
  return {.scores = p.placement, .config = recipe.config};
}

// What this rank computes.
inline Results in_parallel(const Group& group, const World& world, const Recipe& recipe,
                           TokenWire wire) {
  const ExpertsProblem& p = world.p;
  const int64_t rank = group.rank(), size = group.size();
  const at::Tensor x = world.of_rank(p.x, rank).requires_grad_();
  const at::Tensor scores = world.of_rank(p.scores, rank).requires_grad_();
  const at::Tensor w1 = part_of(p.w1, rank, size), w3 = part_of(p.w3, rank, size),
                   w2 = part_of(p.w2, rank, size);
  const at::Tensor out = moe_experts_parallel(group, x, w1, w3, w2, world.of_rank(p.experts, rank),
                                              scores, options_of(p, recipe), wire);
  out.backward(world.of_rank(p.upstream, rank));
  return {out.detach(), x.grad(), scores.grad(), w1.grad(), w3.grad(), w2.grad()};
}

// The values that travel.
inline at::Tensor values_on_the_wire(const at::Tensor& x, const Recipe& recipe, TokenWire wire) {
  if (wire == TokenWire::VALUES || !recipe.config) return x.detach();
  if (std::holds_alternative<FP8GroupedMMConfig>(*recipe.config)) {
    return fake_quantize_float8(x.detach(), Float8Granularity::axiswise(1), ElemDtype::E4M3, true);
  }
  return fake_quantize_mx(x.detach(), ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1);
}

// One process that has the tokens of all ranks and adds up per rank: results of all tokens, and of the
// experts of `rank`.
inline Results in_one(const World& world, int64_t size, int64_t rank, const Recipe& recipe,
                      TokenWire wire) {
  const ExpertsProblem& p = world.p;
  const int64_t own = p.w1.size(0) / size;
  const at::Tensor values = values_on_the_wire(p.x, recipe, wire);
  at::Tensor out, grad_x, grad_scores;
  const auto add = [](at::Tensor& sum, const at::Tensor& t) {
    sum = sum.defined() ? sum + t.to(at::kFloat) : t.to(at::kFloat);
  };
  Results results;
  for (int64_t r = 0; r < size; ++r) {
    const at::Tensor x = leaf(values), scores = leaf(p.scores);
    const at::Tensor w1 = part_of(p.w1, r, size), w3 = part_of(p.w3, r, size),
                     w2 = part_of(p.w2, r, size);
    const at::Tensor part =
        moe_experts(x, w1, w3, w2, p.experts - r * own, scores, options_of(p, recipe));
    part.backward(wire == TokenWire::CODES_BOTH_WAYS ? values_on_the_wire(p.upstream, recipe, wire)
                                                     : p.upstream);
    add(out, part.detach());
    add(grad_x, x.grad());
    add(grad_scores, scores.grad());
    if (r == rank) results = {{}, {}, {}, w1.grad(), w3.grad(), w2.grad()};
  }
  results.out = out.to(p.x.scalar_type());
  results.x = grad_x.to(p.x.scalar_type());
  results.scores = grad_scores;
  return results;
}

inline void expect_equal(const at::Tensor& a, const at::Tensor& b, const char* what) {
  ASSERT_EQ(a.sizes(), b.sizes()) << what;
  ASSERT_EQ(a.scalar_type(), b.scalar_type()) << what;
  EXPECT_TRUE(a.equal(b)) << what << ": " << a.ne(b).sum().item<int64_t>() << " of " << a.numel()
                          << " differ, at most by "
                          << (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

inline void compare_with_one_process(const Group& group, const World& world, const Recipe& recipe,
                                     TokenWire wire) {
  SCOPED_TRACE(concat(recipe.name, ", wire ", static_cast<int>(wire)));
  const Results mine = in_parallel(group, world, recipe, wire);
  const Results one = in_one(world, group.size(), group.rank(), recipe, wire);
  expect_equal(mine.out, world.of_rank(one.out, group.rank()), "out");
  expect_equal(mine.x, world.of_rank(one.x, group.rank()), "gradient of x");
  expect_equal(mine.scores, world.of_rank(one.scores, group.rank()), "gradient of scores");
  expect_equal(mine.w1, one.w1, "gradient of w1");
  expect_equal(mine.w3, one.w3, "gradient of w3");
  expect_equal(mine.w2, one.w2, "gradient of w2");
}

inline World world_of(int64_t size, const ExpertsShape& shape, uint64_t seed,
                      at::ScalarType dtype = at::kBFloat16) {
  World world{experts_problem(shape, dtype, seed), {}};
  for (int64_t r = 0; r < size; ++r) world.tokens.push_back(shape.tokens / size);
  return world;
}

}  // namespace moe8::testing
