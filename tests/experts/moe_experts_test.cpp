// SPDX-License-Identifier: BSD-3-Clause
// moe_experts in high precision, against the definition in float64: values, gradients, edges,
// misuse.
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <utility>

#include "experts/problem.h"
#include "moe8/experts.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

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

constexpr ExpertsImplementation kBoth[] = {ExpertsImplementation::FUSED,
                                           ExpertsImplementation::UNFUSED};

void expect_close(const ExpertsResults& expected, const ExpertsResults& got, double db,
                  const std::string& what) {
  EXPECT_GE(sqnr_db(expected.out, got.out), db) << what << " out";
  ASSERT_EQ(expected.grads.size(), got.grads.size());
  for (size_t i = 0; i < got.grads.size(); ++i) {
    EXPECT_GE(sqnr_db(expected.grads[i], got.grads[i]), db) << what << " gradient " << i;
  }
}

std::string name_of(const ExpertsProblem& p,
                    ExpertsImplementation which = ExpertsImplementation::FUSED) {
  return c10::str(which == ExpertsImplementation::FUSED ? "fused" : "unfused",
                  p.activation == Activation::SWIGLU ? " swiglu" : " clamped",
                  p.placement == ScorePlacement::OUTPUT ? " output" : " input",
                  p.b1.defined() ? " with biases" : "");
}

// Every activation, placement of the scores, with and without biases.
std::vector<ExpertsProblem> variants(const ExpertsShape& shape, at::ScalarType dtype) {
  std::vector<ExpertsProblem> list;
  for (const Activation activation : {Activation::SWIGLU, Activation::CLAMPED_SWIGLU}) {
    for (const ScorePlacement placement : {ScorePlacement::OUTPUT, ScorePlacement::INPUT}) {
      for (const bool has_bias : {false, true}) {
        ExpertsProblem p = experts_problem(shape, dtype, list.size() + 1, has_bias);
        p.activation = activation;
        p.placement = placement;
        list.push_back(p);
      }
    }
  }
  return list;
}

TEST(MoeExperts, Float32IsTheDefinition) {
  for (const ExpertsProblem& p : variants({.tokens = 50, .top_k = 3, .experts = 6}, at::kFloat)) {
    for (const ExpertsImplementation which : kBoth) {
      expect_close(in_float64(p), run_experts(p, {.implementation = which}), 110,
                   name_of(p, which));
    }
  }
}

TEST(MoeExperts, Bfloat16IsRoundedAtHiddenRowsActivationsAndResults) {
  for (const ExpertsProblem& p :
       variants({.tokens = 50, .top_k = 3, .experts = 6, .dim = 64, .hidden = 96}, at::kBFloat16)) {
    for (const ExpertsImplementation which : kBoth) {
      expect_close(in_float64(p), run_experts(p, {.implementation = which}), 42, name_of(p, which));
    }
  }
}

TEST(MoeExperts, WithoutScoresEachExpertCountsOnce) {
  for (const ScorePlacement placement : {ScorePlacement::OUTPUT, ScorePlacement::INPUT}) {
    ExpertsProblem p = experts_problem({}, at::kFloat, 3, /*has_bias=*/true);
    p.scores = at::Tensor();
    p.placement = placement;
    for (const ExpertsImplementation which : kBoth) {
      expect_close(in_float64(p), run_experts(p, {.implementation = which}), 110,
                   name_of(p, which));
    }
  }
}

// A directional derivative by differences: what autograd's own formulas have no part in.
TEST(MoeExperts, GradientsAreDifferencesOfValues) {
  for (ExpertsProblem p :
       variants({.tokens = 9, .experts = 3, .dim = 8, .hidden = 8}, at::kFloat)) {
    const ExpertsResults got = run_experts(p, {.implementation = ExpertsImplementation::FUSED});
    const std::vector<at::Tensor> leaves = p.leaves();
    for (size_t i = 0; i < leaves.size(); ++i) {
      const torch::NoGradGuard no_grad;
      const at::Tensor direction = at::randn_like(leaves[i]);
      const double step = 1e-3;
      const auto value_at = [&](double shift) {
        leaves[i].add_(direction, shift);
        const at::Tensor out = testing::call_experts(p, {});
        leaves[i].sub_(direction, shift);
        return (out.to(at::kDouble) * p.upstream).sum().item<double>();
      };
      const double difference = (value_at(step) - value_at(-step)) / (2 * step);
      const double slope = (got.grads[i].to(at::kDouble) * direction).sum().item<double>();
      EXPECT_NEAR(difference, slope, 2e-2 * (std::abs(slope) + 1)) << name_of(p) << " " << i;
    }
  }
}

// ---- routing ----------------------------------------------------------------
TEST(MoeExperts, AnyNumberOfTokensAndExperts) {
  const ExpertsShape shapes[] = {
      {.tokens = 0},
      {.tokens = 1},
      {.tokens = 7, .top_k = 4, .experts = 4},            // every expert
      {.tokens = 5, .top_k = 6, .experts = 4},            // more often than there are
      {.tokens = 3, .top_k = 0},                          // none at all
      {.tokens = 11, .top_k = 1, .experts = 1},           // one for all
      {.tokens = 13, .top_k = 2, .experts = 64},          // most of them empty
      {.tokens = 21, .top_k = 3, .dim = 5, .hidden = 7},  // aligned to nothing
      {.tokens = 9, .dim = 1, .hidden = 1},
  };
  for (const ExpertsShape& shape : shapes) {
    for (const ExpertsProblem& p : variants(shape, at::kFloat)) {
      for (const ExpertsImplementation which : kBoth) {
        const ExpertsResults expected = in_float64(p);
        const ExpertsResults got = run_experts(p, {.implementation = which});
        EXPECT_EQ(got.out.sizes(), p.x.sizes());
        EXPECT_TRUE(at::allclose(expected.out.to(at::kFloat), got.out, 1e-4, 1e-5));
        for (size_t i = 0; i < got.grads.size(); ++i) {
          EXPECT_TRUE(at::allclose(expected.grads[i].to(at::kFloat), got.grads[i], 1e-4, 1e-4))
              << name_of(p, which) << " " << i << " of " << shape.tokens << " x " << shape.top_k;
        }
      }
    }
  }
}

TEST(MoeExperts, GroupsOfAwkwardSizes) {
  ExpertsProblem p = experts_problem({.tokens = 129, .top_k = 1, .experts = 5}, at::kFloat, 1);
  std::vector<int64_t> experts;
  for (const auto& [expert, count] : {std::pair{0, 1}, {1, 63}, {3, 65}}) {
    experts.insert(experts.end(), count, expert);
  }
  p.experts = at::tensor(experts, at::kLong).view({129, 1});
  for (const ExpertsImplementation which : kBoth) {
    const ExpertsResults got = run_experts(p, {.implementation = which});
    expect_close(in_float64(p), got, 110, name_of(p, which));
    for (const size_t weight : {1, 2, 3}) {
      for (const int64_t empty : {2, 4}) {
        EXPECT_TRUE(got.grads[weight][empty].eq(0).all().item<bool>()) << weight;
      }
    }
  }
}

// Slots of experts that are not here add nothing and get no gradient, whatever they hold.
TEST(MoeExperts, SlotsOfNoExpertTakeNoPart) {
  for (ExpertsProblem p : variants({.tokens = 20, .top_k = 3, .experts = 4}, at::kFloat)) {
    const at::Tensor experts = at::randint(-1, 5, {20, 3}, at::kLong);
    const at::Tensor is_away = experts.lt(0).logical_or(experts.ge(4));
    p.experts = experts.clone();
    p.experts[7].fill_(-1);  // a token of nobody
    for (const ExpertsImplementation which : kBoth) {
      const ExpertsResults clean = run_experts(p, {.implementation = which});
      expect_close(in_float64(p), clean, 110, name_of(p, which));
      EXPECT_TRUE(clean.out[7].eq(0).all().item<bool>());
      EXPECT_TRUE(clean.grads[0][7].eq(0).all().item<bool>());
      EXPECT_TRUE(clean.grads[4].masked_select(is_away).eq(0).all().item<bool>());
      ExpertsProblem dirty = p;
      dirty.x = p.x.detach().clone();
      dirty.x[7].fill_(NAN);
      dirty.x.requires_grad_();
      dirty.scores = p.scores.detach().masked_fill(is_away, NAN).requires_grad_();
      const ExpertsResults got = run_experts(dirty, {.implementation = which});
      EXPECT_TRUE(same_bits(clean.out, got.out)) << name_of(p, which);
      for (size_t i = 0; i < got.grads.size(); ++i) {
        EXPECT_TRUE(at::equal(clean.grads[i], got.grads[i])) << name_of(p, which) << " " << i;
      }
    }
  }
}

TEST(MoeExperts, RandomShapes) {
  torch::manual_seed(11);
  const auto any = [](int64_t least, int64_t most) {
    return at::randint(least, most + 1, {}, at::kLong).item<int64_t>();
  };
  for (int i = 0; i < 200; ++i) {
    ExpertsShape shape;
    shape.experts = any(1, 9);
    shape.top_k = any(1, shape.experts);
    shape.tokens = any(1, 40);
    shape.dim = any(1, 40);
    shape.hidden = any(1, 40);
    ExpertsProblem p = experts_problem(shape, at::kFloat, static_cast<uint64_t>(i), any(0, 1) == 1);
    p.activation = static_cast<Activation>(any(0, 1));
    p.placement = static_cast<ScorePlacement>(any(0, 1));
    const ExpertsResults got = run_experts(p, {.implementation = ExpertsImplementation::FUSED});
    expect_close(in_float64(p), got, 95, c10::str(i));
  }
}

TEST(MoeExperts, TwiceTheSameBits) {
  for (const ExpertsProblem& p : variants({.tokens = 90, .dim = 64}, at::kBFloat16)) {
    const ExpertsResults first = run_experts(p, {}), second = run_experts(p, {});
    EXPECT_TRUE(same_bits(first.out, second.out));
    for (size_t i = 0; i < first.grads.size(); ++i) {
      EXPECT_TRUE(same_bits(first.grads[i], second.grads[i])) << name_of(p) << " " << i;
    }
  }
}

// ---- gradients that are wanted ------------------------------------------------
TEST(MoeExperts, EveryCombinationOfWantedGradients) {
  for (const ScorePlacement placement : {ScorePlacement::OUTPUT, ScorePlacement::INPUT}) {
    ExpertsProblem p = experts_problem({.tokens = 12, .experts = 3, .dim = 8, .hidden = 8},
                                       at::kFloat, 5, /*has_bias=*/true);
    p.placement = placement;
    const ExpertsOptions fused{.implementation = ExpertsImplementation::FUSED};
    const ExpertsResults all = run_experts(p, fused);
    const std::vector<at::Tensor> leaves = p.leaves();
    for (uint32_t wanted = 0; wanted < 1u << leaves.size(); ++wanted) {
      std::vector<at::Tensor> inputs;
      for (size_t i = 0; i < leaves.size(); ++i) {
        leaves[i].requires_grad_((wanted >> i & 1) != 0);
        if (leaves[i].requires_grad()) inputs.push_back(leaves[i]);
      }
      const at::Tensor out = testing::call_experts(p, fused);
      EXPECT_TRUE(same_bits(all.out, out.detach()));
      EXPECT_EQ(out.requires_grad(), wanted != 0);
      if (wanted == 0) continue;
      const auto grads = torch::autograd::grad({out}, inputs, {p.upstream});
      for (size_t i = 0, next = 0; i < leaves.size(); ++i) {
        if (!leaves[i].requires_grad()) continue;
        EXPECT_TRUE(same_bits(all.grads[i], grads[next++])) << wanted << " " << i;
      }
    }
    // Asked for of a graph that could give all.
    for (const at::Tensor& leaf : leaves) leaf.requires_grad_();
    for (size_t i = 0; i < leaves.size(); ++i) {
      const auto grads =
          torch::autograd::grad({testing::call_experts(p, fused)}, {leaves[i]}, {p.upstream});
      EXPECT_TRUE(same_bits(all.grads[i], grads[0])) << i;
    }
  }
}

TEST(MoeExperts, ModesWithoutGradients) {
  const ExpertsProblem p = experts_problem({}, at::kBFloat16, 6, true);
  for (const ExpertsImplementation which : kBoth) {
    const ExpertsOptions options{.implementation = which};
    const at::Tensor expected = testing::call_experts(p, options);
    {
      const torch::NoGradGuard no_grad;
      const at::Tensor out = testing::call_experts(p, options);
      EXPECT_TRUE(same_bits(expected.detach(), out));
      EXPECT_FALSE(out.requires_grad());
    }
    const c10::InferenceMode inference;
    EXPECT_TRUE(same_bits(expected.detach(), testing::call_experts(p, options).clone()));
  }
}

TEST(MoeExperts, GradientsOfEveryKind) {
  const ExpertsProblem p = experts_problem({}, at::kFloat, 7);
  const auto grad_of = [&](const at::Tensor& upstream) {
    return torch::autograd::grad({testing::call_experts(p, {})}, p.leaves(), {upstream});
  };
  const at::Tensor ones = at::ones_like(p.x);
  const auto expected = grad_of(ones);
  for (const at::Tensor& same : {at::ones({1, 1}).expand_as(p.x), at::_neg_view(-ones)}) {
    const auto got = grad_of(same);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(expected[i], got[i])) << i;
  }
  for (const at::Tensor& zero : grad_of(at::_efficientzerotensor(p.x.sizes()))) {
    EXPECT_TRUE(zero.eq(0).all().item<bool>());
  }
}

TEST(MoeExperts, ASecondDerivativeIsAnErrorOrRight) {
  const ExpertsProblem p = experts_problem({.tokens = 6, .dim = 8, .hidden = 8}, at::kFloat, 8);
  const auto first = [&](ExpertsImplementation which) {
    const at::Tensor out = testing::call_experts(p, {.implementation = which});
    return torch::autograd::grad({out.square().sum()}, {p.x}, {}, std::nullopt, true)[0];
  };
  EXPECT_THAT(error_of([&] { first(ExpertsImplementation::FUSED).sum().backward(); }),
              HasSubstr("moe_experts cannot be differentiated twice"));
  const auto second =
      torch::autograd::grad({first(ExpertsImplementation::UNFUSED).sum()}, {p.w2, p.scores});
  ExpertsProblem exact = p;
  for (at::Tensor* t : {&exact.x, &exact.w1, &exact.w3, &exact.w2, &exact.scores}) {
    *t = t->detach().to(at::kDouble).requires_grad_();
  }
  const at::Tensor grad = torch::autograd::grad({testing::dense_experts(exact).square().sum()},
                                                {exact.x}, {}, std::nullopt, true)[0];
  const auto expected = torch::autograd::grad({grad.sum()}, {exact.w2, exact.scores});
  EXPECT_GT(sqnr_db(expected[0], second[0]), 100);
  EXPECT_GT(sqnr_db(expected[1], second[1]), 100);
}

TEST(MoeExperts, AGraphThatIsKeptGivesTheSameTwice) {
  for (const SavedHidden how : {SavedHidden::SOURCE, SavedHidden::FLOAT8}) {
    const ExpertsProblem p = experts_problem({}, at::kFloat, 12, true);
    const at::Tensor out = testing::call_experts(p, {.saved_hidden = how});
    const auto grad = [&](bool keep) {
      return torch::autograd::grad({out}, p.leaves(), {p.upstream}, keep);
    };
    const auto first = grad(true), second = grad(true), third = grad(false);
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(same_bits(first[i], second[i])) << i;
      EXPECT_TRUE(same_bits(first[i], third[i])) << i;
    }
    EXPECT_THAT(error_of([&] { grad(false); }), HasSubstr("retain_graph"));
  }
}

// ---- dtypes -------------------------------------------------------------------
TEST(MoeExperts, DtypesOfResultsAndGradients) {
  ExpertsProblem p = experts_problem({}, at::kBFloat16, 9, true);
  p.scores = p.scores.detach().to(at::kBFloat16).requires_grad_();
  p.b1 = p.b1.detach().to(at::kDouble).requires_grad_();
  p.experts = p.experts.to(at::kInt);
  for (const ExpertsImplementation which : kBoth) {
    const ExpertsResults got = run_experts(p, {.implementation = which});
    EXPECT_EQ(got.out.scalar_type(), at::kBFloat16);
    const std::vector<at::Tensor> leaves = p.leaves();
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_EQ(got.grads[i].scalar_type(), leaves[i].scalar_type()) << i;
      EXPECT_EQ(got.grads[i].sizes(), leaves[i].sizes()) << i;
    }
  }
}

TEST(MoeExperts, AutocastCastsWhatProductsRead) {
  const ExpertsProblem p = experts_problem({}, at::kFloat, 10, true);
  ExpertsProblem cast = p;
  for (at::Tensor* t : {&cast.x, &cast.w1, &cast.w3, &cast.w2, &cast.b1, &cast.b3, &cast.b2}) {
    *t = t->detach().to(at::kBFloat16).requires_grad_();
  }
  cast.upstream = p.upstream.to(at::kBFloat16);
  for (const ExpertsImplementation which : kBoth) {
    const ExpertsOptions options{.implementation = which};
    at::autocast::set_autocast_enabled(at::kCPU, true);
    const ExpertsResults got = run_experts(p, options);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
    const ExpertsResults expected = run_experts(cast, options);
    EXPECT_TRUE(same_bits(expected.out, got.out));
    for (size_t i = 0; i < got.grads.size(); ++i) {
      EXPECT_TRUE(same_bits(expected.grads[i].to(at::kFloat), got.grads[i])) << i;
    }
  }
}

// ---- misuse -------------------------------------------------------------------
TEST(MoeExperts, MisuseIsToldInWords) {
  const ExpertsProblem good = experts_problem({.tokens = 6, .dim = 8, .hidden = 16}, at::kFloat, 1);
  const auto message = [&](const std::function<void(ExpertsProblem&, ExpertsOptions&)>& spoil) {
    ExpertsProblem p = good;
    ExpertsOptions options;
    spoil(p, options);
    return error_of([&] { moe_experts(p.x, p.w1, p.w3, p.w2, p.experts, p.scores, options); });
  };
#define EXPECT_ERROR(spoil, text)                                          \
  EXPECT_THAT(message([&]([[maybe_unused]] ExpertsProblem& p,              \
                          [[maybe_unused]] ExpertsOptions& o) { spoil; }), \
              HasSubstr(text))
  EXPECT_ERROR(, "(no error)");
  EXPECT_ERROR(p.x = at::Tensor(), "[moe_experts] x: expected a tensor, got an undefined one");
  EXPECT_ERROR(p.x = p.x.to(at::kHalf), "x: expected bfloat16 or float32, got Half [6, 8]");
  EXPECT_ERROR(p.x = p.x.to(at::kDouble), "x: expected bfloat16 or float32, got Double");
  EXPECT_ERROR(p.x = p.x.unsqueeze(0), "x: expected [T, d], got Float [1, 6, 8] on cpu. Flatten");
  EXPECT_ERROR(p.x = p.x.to(at::kMeta), "a meta tensor");
  EXPECT_ERROR(p.x = p.x.narrow(1, 0, 4), "w1: expected [E, h, 4] on cpu to fit x of [6, 4]");
  EXPECT_ERROR(p.w1 = p.w1.transpose(1, 2), "passed as W.transpose(-2, -1)");
  EXPECT_ERROR(p.w1 = p.w1[0], "w1: expected [E, h, d], got Float [16, 8] on cpu");
  EXPECT_ERROR(p.w1 = p.w1.to(at::kBFloat16), "w1: expected Float as x, got BFloat16 [4, 16, 8]");
  EXPECT_ERROR(p.w3 = p.w3.narrow(1, 0, 8),
               "w3: expected [4, 16, 8] on cpu, as w1, got Float [4, 8, 8]");
  EXPECT_ERROR(p.w3 = p.w3.to(at::kMeta), "w3: expected a dense tensor, got a meta tensor");
  EXPECT_ERROR(p.w2 = p.w2.transpose(1, 2),
               "w2: expected [4, 8, 16] on cpu, to fit w1, got Float [4, 16, 8]");
  EXPECT_ERROR(p.w3 = at::Tensor(), "w2: expected [4, 8, 8] on cpu, to fit w1");
  EXPECT_ERROR((p.w3 = at::Tensor(), p.w1 = p.w1.narrow(1, 0, 15)), "w1: expected [E, 2h, 8]");
  EXPECT_ERROR(p.experts = p.experts.narrow(0, 0, 5),
               "experts: expected [6, k] on cpu to fit x of [6, 8], got Long [5, 2]");
  EXPECT_ERROR(p.experts = p.experts.to(at::kFloat), "experts: expected int64 or int32 [T, k]");
  EXPECT_ERROR(p.scores = p.scores.narrow(1, 0, 1),
               "scores: expected floating-point [6, 2] on cpu as experts, got Float [6, 1]");
  EXPECT_ERROR(p.scores = p.experts, "scores: expected floating-point [6, 2]");
  EXPECT_ERROR(o.b1 = at::zeros({4, 8}), "options.b1: expected floating-point [4, 16], a row for");
  EXPECT_ERROR(o.b3 = at::zeros({16}), "options.b3: expected floating-point [4, 16]");
  EXPECT_ERROR(o.b2 = at::zeros({4, 8}, at::kInt), "options.b2: expected floating-point [4, 8]");
  EXPECT_ERROR((p.w3 = at::Tensor(), p.w2 = p.w2.narrow(2, 0, 8), o.b3 = at::zeros({4, 8})),
               "options.b3: expected no tensor where w3 is undefined");
  EXPECT_ERROR(o.limit = 0, "options.limit: expected a finite number above 0, got 0");
  EXPECT_ERROR(o.alpha = INFINITY, "options.alpha: expected a finite number, got inf");
  EXPECT_ERROR(o.activation = static_cast<Activation>(7),
               "options.activation: expected an enumerator, got 7");
  EXPECT_ERROR(o.config = MXLinearConfig{},
               "options.config: expected an FP8GroupedMMConfig or MXFP8GroupedMMConfig");
  EXPECT_ERROR(o.config = FP8GroupedMMConfig{.out_dtype = at::kHalf}, "out_dtype");
  EXPECT_ERROR(
      (o.saved_hidden = SavedHidden::FLOAT8, o.implementation = ExpertsImplementation::UNFUSED),
      "not unfused: its operations save what LibTorch's do");
#undef EXPECT_ERROR
  ExpertOrder other = expert_order(good.experts, 5);
  EXPECT_THAT(
      error_of([&] { moe_experts(good.x, good.w1, good.w3, good.w2, other, good.scores); }),
      HasSubstr("order: expected that of 4 experts, as w1 has them, and 12 rows, got 5 and 12"));
  EXPECT_THAT(
      error_of([&] { moe_experts(good.x, good.w1, good.w3, good.w2, ExpertOrder{}, good.scores); }),
      HasSubstr("order: expected what expert_order() made"));
}

}  // namespace
}  // namespace moe8
