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
#include "moe8/numerics.h"

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

// The experts of this rank.
inline ExpertWeights own_experts(const Group& group, const World& world) {
  ExpertsProblem own = world.p;
  for (at::Tensor* w : {&own.w1, &own.w3, &own.w2}) *w = part_of(*w, group.rank(), group.size());
  return ExpertWeights(own);
}

// What this rank computes.
inline Results in_parallel(const Group& group, const World& world, ExpertWeights weights,
                           const Recipe& recipe, TokenWire wire) {
  const ExpertsProblem& p = world.p;
  const int64_t rank = group.rank();
  const at::Tensor x = world.of_rank(p.x, rank).requires_grad_();
  const at::Tensor scores = world.of_rank(p.scores, rank).requires_grad_();
  weights->zero_grad();
  const at::Tensor out =
      moe_experts_parallel(group, x, weights->w1, weights->w3, weights->w2,
                           world.of_rank(p.experts, rank), scores, options_of(p, recipe), wire);
  out.backward(world.of_rank(p.upstream, rank));
  return {out.detach(),       x.grad(),           scores.grad(),
          weights->w1.grad(), weights->w3.grad(), weights->w2.grad()};
}

inline Results in_parallel(const Group& group, const World& world, const Recipe& recipe,
                           TokenWire wire) {
  return in_parallel(group, world, own_experts(group, world), recipe, wire);
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

inline void expect_equal(const Results& a, const Results& b) {
  expect_equal(a.out, b.out, "out");
  expect_equal(a.x, b.x, "gradient of x");
  expect_equal(a.scores, b.scores, "gradient of scores");
  expect_equal(a.w1, b.w1, "gradient of w1");
  expect_equal(a.w3, b.w3, "gradient of w3");
  expect_equal(a.w2, b.w2, "gradient of w2");
}

inline void compare_with_one_process(const Group& group, const World& world, const Recipe& recipe,
                                     TokenWire wire) {
  SCOPED_TRACE(concat(recipe.name, ", wire ", static_cast<int>(wire)));
  Results one = in_one(world, group.size(), group.rank(), recipe, wire);
  for (at::Tensor* t : {&one.out, &one.x, &one.scores}) *t = world.of_rank(*t, group.rank());
  expect_equal(in_parallel(group, world, recipe, wire), one);
}

// Somebody looks at the products meanwhile: the same bits, and what he sees is there and right. Tokens
// that came as codes stand for the values of these, of which no code has an error.
inline void compare_with_watched(const Group& group, const World& world, const Recipe& recipe) {
  SCOPED_TRACE(recipe.name);
  const ExpertWeights weights = own_experts(group, world);
  const Results unseen = in_parallel(group, world, weights, recipe, TokenWire::AUTO);
  NumericsMonitor monitor(*weights);
  const Results seen = in_parallel(group, world, weights, recipe, TokenWire::AUTO);
  monitor.stop();
  expect_equal(seen, unseen);
  const NumericsReport report = monitor.report_later().get();
  ASSERT_EQ(report.weights.size(), 3u);
  for (const WeightNumerics& weight : report.weights) {
    ASSERT_EQ(weight.products.size(), 3u) << weight.fqn;
    for (const ProductNumerics& product : weight.products) {
      SCOPED_TRACE(concat(weight.fqn, " ", product.name));
      EXPECT_EQ(product.calls, 1);
      EXPECT_GT(product.sqnr_db, 22);
      EXPECT_LT(product.sqnr_db, 60);
      EXPECT_GT(product.left.sqnr_db, 24);
      EXPECT_GT(product.right.sqnr_db, 24);
      if (product.name == "out" && weight.fqn != "w2") {
        EXPECT_GT(product.left.sqnr_db, 100);
      }
    }
  }
  ASSERT_EQ(report.experts.size(), 1u);
  const int64_t own = weights->w1.size(0), first = group.rank() * own;
  const at::Tensor counts = at::bincount(world.p.experts.flatten(), {}, own * group.size()).cpu();
  for (int64_t e = 0; e < own; ++e) {
    EXPECT_EQ(report.experts[0].tokens[e], counts[first + e].item<int64_t>());
  }
}

inline World world_of(int64_t size, const ExpertsShape& shape, uint64_t seed,
                      at::ScalarType dtype = at::kBFloat16) {
  World world{experts_problem(shape, dtype, seed), {}};
  for (int64_t r = 0; r < size; ++r) world.tokens.push_back(shape.tokens / size);
  return world;
}

}  // namespace moe8::testing
