// SPDX-License-Identifier: BSD-3-Clause
// moe_experts in low precision: accuracy of every recipe, layouts of weights, converted weights,
// what observers see, and the settings of its arithmetic.
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <utility>

#include "autograd/training_formats.h"
#include "experts/problem.h"
#include "moe8/experts.h"
#include "moe8/memory.h"
#include "moe8/numerics.h"
#include "moe8/quantize_model.h"
#include "operand/operand.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using testing::call_experts;
using testing::error_of;
using testing::experts_problem;
using testing::ExpertsProblem;
using testing::ExpertsResults;
using testing::ExpertsShape;
using ::testing::HasSubstr;
using testing::in_float64;
using testing::run_experts;
using testing::same_bits;
using testing::sqnr_db;
using testing::with_weights;

constexpr ExpertsShape kShape{.tokens = 300, .top_k = 2, .experts = 5, .dim = 128, .hidden = 96};

/// What stands for a weight's place in ExpertsProblem::leaves().
enum Leaf { kX, kW1, kW3, kW2, kScores, kB1, kB3, kB2 };

std::vector<ExpertsProblem> problems(at::ScalarType dtype) {
  std::vector<ExpertsProblem> list;
  for (const Activation activation : {Activation::SWIGLU, Activation::CLAMPED_SWIGLU}) {
    for (const ScorePlacement placement : {ScorePlacement::OUTPUT, ScorePlacement::INPUT}) {
      ExpertsProblem p = experts_problem(kShape, dtype, list.size() + 20, !list.empty());
      p.activation = activation;
      p.placement = placement;
      list.push_back(p);
    }
  }
  return list;
}

// ---- accuracy -------------------------------------------------------------------
/// SQNR in dB against float64. Two products lie one behind the other, so the bars are below those
/// of one product (docs/numerics.md, section 7).
struct Bars {
  double out, grad_x, grad_w;
};

Bars bars_of(const RecipeInfo& recipe) {
  // FLOOR cuts the largest of a block.
  const bool floors = recipe.name.find("floor") != std::string::npos;
  const bool hp = recipe.name.find("wgrad_with_hp") != std::string::npos;
  const double least = floors ? 21.4 : 22.9;
  return {least, least, hp ? least + 1.4 : least};
}

bool is_weight(size_t leaf) {
  return leaf == kW1 || leaf == kW3 || leaf == kW2;
}

TEST(ExpertsRecipes, AreAsExactAsOperationByOperation) {
  for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
    const Bars bars = bars_of(recipe);
    for (const ExpertsProblem& p : problems(at::kBFloat16)) {
      const ExpertsResults exact = in_float64(p);
      const auto run = [&](ExpertsImplementation which) {
        return run_experts(p, {.config = recipe.config, .implementation = which});
      };
      const ExpertsResults fused = run(ExpertsImplementation::FUSED);
      const ExpertsResults unfused = run(ExpertsImplementation::UNFUSED);
      const std::string what = recipe.name + (p.b1.defined() ? " with biases" : "");
      const double out = sqnr_db(exact.out, fused.out);
      EXPECT_GE(out, bars.out) << what;
      EXPECT_GE(out, sqnr_db(exact.out, unfused.out) - 0.1) << what;
      for (size_t i = 0; i < fused.grads.size(); ++i) {
        const double got = sqnr_db(exact.grads[i], fused.grads[i]);
        const double by_operations = sqnr_db(exact.grads[i], unfused.grads[i]);
        EXPECT_GE(got, is_weight(i) ? bars.grad_w : bars.grad_x) << what << " " << i;
        // Scores and biases have few gradients: chance moves their error.
        EXPECT_GE(got, by_operations - (i == kX || is_weight(i) ? 0.1 : 1.0)) << what << " " << i;
      }
    }
  }
}

// Where the arithmetic of both is the same, so are the bits: forward without scores on the input,
// and b2, whose gradient meets no product.
TEST(ExpertsRecipes, ForwardIsThatOfTheOperations) {
  for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
    for (const ExpertsProblem& p : problems(at::kBFloat16)) {
      const auto run = [&](ExpertsImplementation which) {
        return run_experts(p, {.config = recipe.config, .implementation = which});
      };
      const ExpertsResults fused = run(ExpertsImplementation::FUSED);
      const ExpertsResults unfused = run(ExpertsImplementation::UNFUSED);
      if (p.placement == ScorePlacement::OUTPUT) {
        EXPECT_TRUE(same_bits(unfused.out, fused.out)) << recipe.name;
      } else {
        EXPECT_GT(sqnr_db(unfused.out, fused.out), 25) << recipe.name;
      }
      if (!p.b1.defined()) continue;
      EXPECT_TRUE(same_bits(unfused.grads[kB2], fused.grads[kB2])) << recipe.name;
    }
  }
}

TEST(ExpertsRecipes, RandomShapes) {
  torch::manual_seed(12);
  const auto any = [](int64_t least, int64_t most) {
    return at::randint(least, most + 1, {}, at::kLong).item<int64_t>();
  };
  const std::vector<RecipeInfo> recipes = testing::recipes_of_experts();
  for (int i = 0; i < 100; ++i) {
    ExpertsShape shape;
    shape.experts = any(1, 6);
    shape.top_k = any(1, shape.experts);
    shape.tokens = any(8, 60);
    shape.dim = any(8, 80);
    shape.hidden = any(8, 80);
    ExpertsProblem p =
        experts_problem(shape, at::kBFloat16, static_cast<uint64_t>(i), any(0, 1) == 1);
    p.activation = static_cast<Activation>(any(0, 1));
    p.placement = static_cast<ScorePlacement>(any(0, 1));
    const RecipeInfo& recipe = recipes[static_cast<size_t>(any(0, int64_t(recipes.size()) - 1))];
    const ExpertsResults exact = in_float64(p);
    const ExpertsResults got =
        run_experts(p, {.config = recipe.config, .implementation = ExpertsImplementation::FUSED});
    EXPECT_GT(sqnr_db(exact.out, got.out), 18) << i << " " << recipe.name;
    for (size_t g = 0; g < got.grads.size(); ++g) {
      EXPECT_GT(sqnr_db(exact.grads[g], got.grads[g]), 15) << i << " " << recipe.name << " " << g;
    }
  }
}

// ---- layouts ----------------------------------------------------------------------
// The same call with gate and up in one weight.
ExpertsResults run_joined(const ExpertsProblem& p, GateUpLayout layout,
                          const std::optional<Config>& config) {
  const auto join = [&](const at::Tensor& gate, const at::Tensor& up) {
    const at::Tensor both = layout == GateUpLayout::HALVES ? at::cat({gate, up}, 1)
                                                           : at::stack({gate, up}, 2).flatten(1, 2);
    return both.detach().requires_grad_();
  };
  const at::Tensor w13 = join(p.w1, p.w3);
  ExpertsOptions o{.gate_up = layout, .activation = p.activation, .scores = p.placement};
  o.config = config;
  o.implementation = ExpertsImplementation::FUSED;
  std::vector<at::Tensor> inputs{p.x, w13, p.w2, p.scores};
  if (p.b1.defined()) {
    o.b1 = join(p.b1, p.b3);
    o.b2 = p.b2;
    inputs.insert(inputs.end(), {o.b1, o.b2});
  }
  const at::Tensor out = moe_experts(p.x, w13, at::Tensor(), p.w2, p.experts, p.scores, o);
  const auto grads = torch::autograd::grad({out}, inputs, {p.upstream});
  const auto gate_of = [&](const at::Tensor& g) {
    return layout == GateUpLayout::HALVES ? g.narrow(1, 0, g.size(1) / 2)
                                          : g.slice(1, 0, g.size(1), 2);
  };
  const auto up_of = [&](const at::Tensor& g) {
    const int64_t half = g.size(1) / 2;
    return layout == GateUpLayout::HALVES ? g.narrow(1, half, half) : g.slice(1, 1, g.size(1), 2);
  };
  ExpertsResults joined;
  joined.out = out.detach();
  joined.grads = {grads[0], gate_of(grads[1]).contiguous(), up_of(grads[1]).contiguous(), grads[2],
                  grads[3]};
  if (p.b1.defined()) {
    joined.grads.insert(joined.grads.end(),
                        {gate_of(grads[4]).contiguous(), up_of(grads[4]).contiguous(), grads[5]});
  }
  return joined;
}

std::vector<std::optional<Config>> high_and_low() {
  return {std::nullopt, recipe("fp8_rowwise"), recipe("mxfp8_rceil")};
}

TEST(ExpertsLayouts, OneWeightByHalvesIsTwoWeights) {
  for (const std::optional<Config>& config : high_and_low()) {
    for (const ExpertsProblem& p : problems(at::kBFloat16)) {
      const ExpertsResults expected =
          run_experts(p, {.config = config, .implementation = ExpertsImplementation::FUSED});
      const ExpertsResults got = run_joined(p, GateUpLayout::HALVES, config);
      EXPECT_TRUE(same_bits(expected.out, got.out));
      for (size_t i = 0; i < got.grads.size(); ++i) {
        EXPECT_TRUE(same_bits(expected.grads[i], got.grads[i])) << i;
      }
    }
  }
}

// The same products, in which dX adds up in another order and MX blocks mix gate and up.
TEST(ExpertsLayouts, OneWeightInterleaved) {
  for (const std::optional<Config>& config : high_and_low()) {
    for (const ExpertsProblem& p : problems(at::kBFloat16)) {
      const ExpertsResults expected =
          run_experts(p, {.config = config, .implementation = ExpertsImplementation::FUSED});
      const ExpertsResults got = run_joined(p, GateUpLayout::INTERLEAVED, config);
      EXPECT_TRUE(same_bits(expected.out, got.out));
      for (size_t i = 0; i < got.grads.size(); ++i) {
        if (i == kX || i == kScores) {
          EXPECT_GT(sqnr_db(expected.grads[i], got.grads[i]), i == kX ? 70 : 120);
        } else {
          EXPECT_TRUE(same_bits(expected.grads[i], got.grads[i])) << i;
        }
      }
    }
  }
}

TEST(ExpertsLayouts, WeightsOfAnyStrides) {
  for (const std::optional<Config>& config : high_and_low()) {
    const ExpertsProblem p = problems(at::kBFloat16)[1];
    const ExpertsOptions options{.config = config, .implementation = ExpertsImplementation::FUSED};
    const ExpertsResults expected = run_experts(p, options);
    ExpertsProblem turned = p;  // stored as (E, in, out)
    std::vector<at::Tensor> stored;
    for (at::Tensor* w : {&turned.w1, &turned.w3, &turned.w2}) {
      stored.push_back(w->detach().transpose(1, 2).contiguous().requires_grad_());
      *w = stored.back().transpose(1, 2);
    }
    const at::Tensor out = call_experts(turned, options);
    EXPECT_TRUE(same_bits(expected.out, out.detach()));
    const auto grads = torch::autograd::grad({out}, stored, {p.upstream});
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(same_bits(expected.grads[kW1 + i], grads[i].transpose(1, 2).contiguous()));
    }
    ExpertsProblem padded = p;
    padded.w1 = at::constant_pad_nd(p.w1, {3, 5}).slice(2, 3, 3 + kShape.dim);
    padded.x = at::constant_pad_nd(p.x, {1, 2}).slice(1, 1, 1 + kShape.dim);
    EXPECT_TRUE(same_bits(expected.out, call_experts(padded, options).detach()));
  }
}

// ---- converted weights ------------------------------------------------------------------
TEST(ConvertedExperts, AreThoseOfTheConfig) {
  for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
    const ExpertsProblem p = problems(at::kBFloat16)[0];
    testing::ExpertWeights weights(p);
    quantize_(*weights, FqnToConfig{{"re:w.", recipe.config}});
    const ExpertsProblem converted = with_weights(p, weights);
    for (const auto which : {ExpertsImplementation::FUSED, ExpertsImplementation::UNFUSED}) {
      const ExpertsResults expected =
          run_experts(p, {.config = recipe.config, .implementation = which});
      const ExpertsResults got = run_experts(converted, {.implementation = which});
      EXPECT_TRUE(same_bits(expected.out, got.out)) << recipe.name;
      for (size_t i = 0; i < got.grads.size(); ++i) {
        EXPECT_TRUE(same_bits(expected.grads[i], got.grads[i])) << recipe.name << " " << i;
      }
    }
    EXPECT_EQ(check_conversion(*weights).to_line(), "");
    const at::Tensor expected = call_experts(p, {.config = recipe.config}).detach();
    const c10::InferenceMode inference;
    EXPECT_TRUE(same_bits(expected, call_experts(converted, {}).clone())) << recipe.name;
  }
}

TEST(ConvertedExperts, AutocastCopiesAreConverted) {
  const ExpertsProblem p = problems(at::kFloat)[0];
  testing::ExpertWeights weights(p);
  quantize_(*weights, FqnToConfig{{"re:w.", recipe("fp8_rowwise")}});
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const at::Tensor out = call_experts(with_weights(p, weights), {});
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  ExpertsProblem cast = p;
  for (at::Tensor* t : {&cast.x, &cast.w1, &cast.w3, &cast.w2}) *t = t->to(at::kBFloat16);
  EXPECT_TRUE(
      same_bits(call_experts(cast, {.config = recipe("fp8_rowwise")}).detach(), out.detach()));
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_EQ(check_conversion(*weights).to_line(), "");
}

TEST(ConvertedExperts, SomeOfThemOnly) {
  const ExpertsProblem p = problems(at::kBFloat16)[0];
  const auto run = [&](const FqnToConfig& keys, ExpertsImplementation which) {
    testing::ExpertWeights weights(p);
    quantize_(*weights, keys);
    const ExpertsResults got = run_experts(with_weights(p, weights), {.implementation = which});
    EXPECT_EQ(check_conversion(*weights).to_line(), "");
    return got;
  };
  const ExpertsResults exact = in_float64(p);
  // The second product alone, or the first alone: fused.
  for (const char* keys : {"w2", "re:w[13]"}) {
    const ExpertsResults got = run({{keys, recipe("fp8_rowwise")}}, ExpertsImplementation::FUSED);
    EXPECT_GT(sqnr_db(exact.out, got.out), 24) << keys;
    EXPECT_GT(sqnr_db(exact.grads[kX], got.grads[kX]), 24) << keys;
  }
  // Gate and up of two kinds: not one product.
  for (const FqnToConfig& keys :
       {FqnToConfig{{"w1", recipe("fp8_rowwise")}},
        FqnToConfig{{"w1", recipe("fp8_rowwise")}, {"w3", recipe("mxfp8_rceil")}}}) {
    EXPECT_THAT(error_of([&] { run(keys, ExpertsImplementation::FUSED); }),
                HasSubstr("not fused: w1 and w3 have different configs"));
    const ExpertsResults got = run(keys, ExpertsImplementation::AUTO);
    EXPECT_GT(sqnr_db(exact.out, got.out), 24);
  }
}

// Tensors made of converted weights that are converted themselves, or are lost.
TEST(ConvertedExperts, MadeOfOthers) {
  const ExpertsProblem p = problems(at::kBFloat16)[0];
  testing::ExpertWeights weights(p);
  quantize_(*weights, FqnToConfig{{"re:w.", recipe("fp8_rowwise")}});
  const ExpertsProblem converted = with_weights(p, weights);
  const ExpertsOptions fused{.implementation = ExpertsImplementation::FUSED};
  const ExpertsResults expected = run_experts(converted, fused);
  const at::Tensor w13 = at::cat({weights->w1, weights->w3}, 1);
  ExpertsOptions o = fused;
  const at::Tensor out = moe_experts(p.x, w13, at::Tensor(), weights->w2, p.experts, p.scores, o);
  EXPECT_TRUE(same_bits(expected.out, out.detach()));
  // Joined along what the product contracts: rows would share their scales.
  ExpertsProblem broken = converted;
  broken.x = at::cat({p.x, p.x}, 1).detach();
  broken.w1 = at::cat({weights->w1, weights->w1}, 2);
  broken.w3 = at::cat({weights->w3, weights->w3}, 2);
  broken.w2 = at::cat({weights->w2, weights->w2}, 1);
  EXPECT_THAT(error_of([&] { call_experts(broken, fused); }),
              HasSubstr("not fused: w1 was made of converted weights in a way that leaves no whole "
                        "rows"));
  call_experts(broken, {});
  EXPECT_EQ(check_conversion(*weights).complaints().size(), 2u);  // w1 and w3, by the hooks
}

TEST(ConvertedExperts, QuantizedWeightsAreUsedAgain) {
  const ExpertsProblem p = problems(at::kBFloat16)[0];
  testing::ExpertWeights weights(p);
  quantize_(*weights, FqnToConfig{{"re:w.", recipe("fp8_rowwise")}});
  const ExpertsProblem converted = with_weights(p, weights);
  clear_weight_cache();
  const int64_t before = weight_cache_use().misses;
  const ExpertsResults first = run_experts(converted, {});
  EXPECT_EQ(weight_cache_use().misses - before, 2);  // W13 and W2, backward as well
  set_weight_cache(WeightCache::OFF);
  const ExpertsResults second = run_experts(converted, {});
  set_weight_cache(WeightCache::AUTO);
  for (size_t i = 0; i < first.grads.size(); ++i) {
    EXPECT_TRUE(same_bits(second.grads[i], first.grads[i])) << i;
  }
}

// ---- observers ------------------------------------------------------------------------
TEST(ExpertsNumerics, EachWeightHasItsThreeProducts) {
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    const ExpertsProblem p = problems(at::kBFloat16)[0];
    testing::ExpertWeights weights(p);
    quantize_(*weights, FqnToConfig{{"re:w.", recipe(name)}});
    const ExpertsProblem converted = with_weights(p, weights);
    const ExpertsResults unseen = run_experts(converted, {});
    NumericsMonitor monitor(*weights);
    const ExpertsResults seen = run_experts(converted, {});
    EXPECT_TRUE(same_bits(unseen.out, seen.out));
    for (size_t i = 0; i < seen.grads.size(); ++i) {
      EXPECT_TRUE(same_bits(unseen.grads[i], seen.grads[i])) << i;
    }
    const NumericsReport report = monitor.report();
    ASSERT_EQ(report.weights.size(), 3u);
    for (const WeightNumerics& weight : report.weights) {
      ASSERT_EQ(weight.products.size(), 3u) << weight.fqn;
      for (const ProductNumerics& product : weight.products) {
        EXPECT_EQ(product.calls, 1) << weight.fqn << " " << product.name;
        EXPECT_GT(product.sqnr_db, 24) << weight.fqn << " " << product.name;
        EXPECT_LT(product.sqnr_db, 60) << weight.fqn << " " << product.name;
      }
      const at::Tensor w = weight.fqn == "w1"   ? weights->w1
                           : weight.fqn == "w2" ? weights->w2
                                                : weights->w3;
      EXPECT_EQ(weight.products[0].right.amax, w.abs().max().item<double>()) << weight.fqn;
      EXPECT_EQ(weight.products[2].left.name, "grad_output");
    }
    ASSERT_EQ(report.experts.size(), 1u);
    const at::Tensor counts = at::bincount(p.experts.flatten(), {}, kShape.experts);
    for (int64_t e = 0; e < kShape.experts; ++e) {
      EXPECT_EQ(report.experts[0].tokens[e], counts[e].item<int64_t>());
    }
  }
}

// ---- settings -------------------------------------------------------------------------
TEST(ColumnCodes, FromRowCodesChangeTheWeightsGradientsOnly) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const ExpertsProblem& p : problems(dtype)) {
      const ExpertsResults exact = in_float64(p);
      const auto run = [&](ColumnCodes codes, const char* name) {
        return run_experts(p, {.config = recipe(name), .column_codes = codes});
      };
      const ExpertsResults values = run(ColumnCodes::FROM_VALUES, "fp8_rowwise");
      const ExpertsResults codes = run(ColumnCodes::FROM_ROW_CODES, "fp8_rowwise");
      EXPECT_TRUE(same_bits(values.out, codes.out));
      for (size_t i = 0; i < values.grads.size(); ++i) {
        EXPECT_EQ(bool(same_bits(values.grads[i], codes.grads[i])), !is_weight(i)) << i;
        if (!is_weight(i)) continue;
        EXPECT_GT(sqnr_db(exact.grads[i], codes.grads[i]),
                  sqnr_db(exact.grads[i], values.grads[i]) - 0.05)
            << i;
      }
      const ExpertsResults mx = run(ColumnCodes::FROM_VALUES, "mxfp8_rceil");
      const ExpertsResults same = run(ColumnCodes::FROM_ROW_CODES, "mxfp8_rceil");
      for (size_t i = 0; i < mx.grads.size(); ++i) {
        EXPECT_TRUE(same_bits(mx.grads[i], same.grads[i])) << i;
      }
    }
  }
}

TEST(ColumnCodes, ByOperationsThereAreNone) {
  const ExpertsProblem p = problems(at::kBFloat16)[0];
  EXPECT_THAT(error_of([&] {
                run_experts(p, {.config = recipe("fp8_rowwise"),
                                .column_codes = ColumnCodes::FROM_ROW_CODES,
                                .implementation = ExpertsImplementation::UNFUSED});
              }),
              HasSubstr("not unfused: its products quantize values only"));
}

// H is rounded between forward and backward: out is the same, gradients lose.
TEST(SavedHidden, AsCodes) {
  for (const std::optional<Config>& config : high_and_low()) {
    for (const ExpertsProblem& p : problems(at::kBFloat16)) {
      const ExpertsResults exact = in_float64(p);
      const ExpertsResults source = run_experts(p, {.config = config});
      const ExpertsResults codes =
          run_experts(p, {.config = config, .saved_hidden = SavedHidden::FLOAT8});
      EXPECT_TRUE(same_bits(source.out, codes.out));
      for (size_t i = 0; i < codes.grads.size(); ++i) {
        if (i == kB2) {
          EXPECT_TRUE(same_bits(source.grads[i], codes.grads[i]));
        } else {
          EXPECT_FALSE(same_bits(source.grads[i], codes.grads[i])) << i;
          EXPECT_GT(sqnr_db(exact.grads[i], codes.grads[i]), 20) << i;
        }
      }
    }
  }
}

TEST(ExpertsRecipes, OutDtypeOfTheConfig) {
  const ExpertsProblem p = problems(at::kFloat)[1];
  const ExpertsResults exact = in_float64(p);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    const ExpertsResults got = run_experts(p, {.config = FP8GroupedMMConfig{.out_dtype = dtype}});
    EXPECT_EQ(got.out.scalar_type(), at::kFloat);
    EXPECT_GT(sqnr_db(exact.out, got.out), 20);
  }
}

}  // namespace
}  // namespace moe8
