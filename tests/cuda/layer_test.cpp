// SPDX-License-Identifier: BSD-3-Clause
// The layer of experts on a GPU: routing bit for bit the CPU's, layers by SQNR against float64 and
// against the CPU, codes along columns from those along rows, graphs with other routings, edges.
// Skipped where there is no GPU.
#include <c10/cuda/CUDAFunctions.h>
#include <torch/torch.h>

#include <array>
#include <cmath>
#include <map>
#include <random>

#include "cuda/graph.h"
#include "device/cuda_backend.h"
#include "experts/problem.h"
#include "experts/torchao_layer.h"
#include "moe8/moe8.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::experts_problem;
using testing::ExpertsProblem;
using testing::ExpertsResults;
using testing::ExpertsShape;
using testing::ExpertWeights;
using testing::in_float64;
using testing::run_experts;
using testing::same_bits;
using testing::sqnr_db;
using testing::with_weights;

class ExpertsOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
    set_weight_cache(WeightCache::OFF);
    set_weight_cache(WeightCache::AUTO);
  }
};

at::Tensor gpu(const at::Tensor& x) {
  return x.defined() ? x.detach().to(at::kCUDA).requires_grad_(x.requires_grad()) : x;
}

ExpertsProblem gpu(ExpertsProblem p) {
  for (at::Tensor* t :
       {&p.x, &p.w1, &p.w3, &p.w2, &p.experts, &p.scores, &p.b1, &p.b3, &p.b2, &p.upstream}) {
    *t = gpu(*t);
  }
  return p;
}

std::optional<Config> config_of(const std::string& name) {
  return name == "bf16" ? std::nullopt : std::optional(recipe(name));
}

// ---- routing ------------------------------------------------------------------
struct Choice {
  int64_t tokens, top_k, n_experts;
};

at::Tensor random_choice(const Choice& c, at::ScalarType dtype, bool some_elsewhere) {
  const at::Tensor experts = at::randint(c.n_experts, {c.tokens, c.top_k}, at::dtype(dtype));
  if (!some_elsewhere) return experts;
  const at::Tensor dice = at::rand({c.tokens, c.top_k});
  return at::where(dice.lt(0.1), at::full_like(experts, -1),
                   at::where(dice.gt(0.9), at::full_like(experts, c.n_experts), experts));
}

TEST_F(ExpertsOnGpu, RoutingIsBitForBitTheCpus) {
  torch::manual_seed(1);
  for (const Choice& c : std::vector<Choice>{
           {0, 2, 4}, {1, 1, 1}, {7, 3, 5}, {1000, 8, 8}, {513, 4, 128}, {4096, 6, 300}}) {
    for (const at::ScalarType dtype : {at::kInt, at::kLong}) {
      for (const bool elsewhere : {false, true}) {
        SCOPED_TRACE(c10::str(c.tokens, " x ", c.top_k, " of ", c.n_experts, elsewhere));
        const at::Tensor experts = random_choice(c, dtype, elsewhere);
        const ExpertOrder expected = expert_order(experts, c.n_experts);
        const ExpertOrder order = expert_order(gpu(experts), c.n_experts);
        EXPECT_TRUE(same_bits(expected.slot_of_row, order.slot_of_row.cpu()));
        EXPECT_TRUE(same_bits(expected.row_of_slot, order.row_of_slot.cpu()));
        EXPECT_TRUE(same_bits(expected.offs, order.offs.cpu()));
        EXPECT_TRUE(same_bits(expected.counts, order.counts.cpu()));
      }
    }
  }
}

TEST_F(ExpertsOnGpu, RowsAndTheirSumsAreBitForBitTheCpus) {
  torch::manual_seed(2);
  for (const int64_t columns : {1, 7, 64, 1000}) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
      SCOPED_TRACE(c10::str(columns, " ", dtype));
      const at::Tensor experts = random_choice({300, 3, 7}, at::kLong, true);
      const at::Tensor x = at::randn({300, columns}).to(dtype).requires_grad_();
      const at::Tensor scores = at::rand({300, 3}).requires_grad_();
      const at::Tensor upstream = at::randn({300, columns}).to(dtype);
      const auto results = [&](const at::Tensor& a, const at::Tensor& s, const at::Tensor& e,
                               const at::Tensor& up) {
        const ExpertOrder order = expert_order(e, 7);
        const at::Tensor rows = permute_tokens(a, order);
        const at::Tensor out = combine_rows(rows * rows, order, s);
        std::vector<at::Tensor> all = torch::autograd::grad({out}, {a}, {up});
        all.push_back(rows), all.push_back(out);
        return all;
      };
      const auto expected = results(x, scores, experts, upstream);
      const auto got = results(gpu(x), gpu(scores), gpu(experts), gpu(upstream));
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(same_bits(expected[i].detach(), got[i].detach().cpu())) << i;
      }
    }
  }
}

// ---- layers -------------------------------------------------------------------
// dB of the result and of each gradient, in the order of leaves(): x, w1, w3, w2, scores, biases.
constexpr size_t kScoresResult = 5;
std::vector<double> decibels(const ExpertsResults& expected, const ExpertsResults& got) {
  std::vector<double> all{sqnr_db(expected.out, got.out.cpu())};
  for (size_t i = 0; i < got.grads.size(); ++i) {
    all.push_back(sqnr_db(expected.grads[i], got.grads[i].cpu()));
  }
  return all;
}

void expect_above(const std::vector<double>& got, double bar) {
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_GE(got[i], bar) << (i == 0 ? std::string("out") : c10::str("gradient ", i - 1));
  }
}

// Errors of many small tensors, as those of one: the dB of a few numbers are chance, above all of
// scores, whose gradients are sums of products that may cancel.
class Pooled {
 public:
  void add(const at::Tensor& expected, const at::Tensor& got) {
    const at::Tensor exact = expected.to(at::kDouble);
    signal_ += exact.square().sum().item<double>();
    noise_ += (got.cpu().to(at::kDouble) - exact).square().sum().item<double>();
  }
  double decibels() const { return 10 * std::log10(signal_ / noise_); }

 private:
  double signal_ = 0, noise_ = 0;
};

std::vector<ExpertsProblem> variants(const ExpertsShape& shape) {
  std::vector<ExpertsProblem> list;
  for (const Activation activation : {Activation::SWIGLU, Activation::CLAMPED_SWIGLU}) {
    for (const ScorePlacement placement : {ScorePlacement::OUTPUT, ScorePlacement::INPUT}) {
      for (const bool has_bias : {false, true}) {
        ExpertsProblem p = experts_problem(shape, at::kBFloat16, list.size() + 1, has_bias);
        p.activation = activation;
        p.placement = placement;
        list.push_back(p);
      }
    }
  }
  return list;
}

// Two products in a row, the first of them squared by the gate: 23 dB are what FP8 leaves of a layer,
// fused or not. So the layer is held to what its products by themselves give.
TEST_F(ExpertsOnGpu, LayersAreAsGoodAsTheirProducts) {
  const ExpertsShape shape{.tokens = 333, .top_k = 3, .experts = 7, .dim = 256, .hidden = 192};
  for (const ExpertsProblem& p : variants(shape)) {
    const ExpertsResults expected = in_float64(p);
    for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
      const auto run = [&](ColumnCodes columns, ExpertsImplementation which) {
        return decibels(expected, run_experts(gpu(p), {.config = config_of(name),
                                                       .column_codes = columns,
                                                       .implementation = which}));
      };
      const auto by_products = run(ColumnCodes::FROM_VALUES, ExpertsImplementation::UNFUSED);
      for (const ColumnCodes columns : {ColumnCodes::FROM_VALUES, ColumnCodes::FROM_ROW_CODES}) {
        SCOPED_TRACE(c10::str(name, " columns ", int(columns), " activation ", int(p.activation),
                              " placement ", int(p.placement), p.b1.defined() ? " biases" : ""));
        const auto fused = run(columns, ExpertsImplementation::FUSED);
        expect_above(fused, std::string(name) == "bf16" ? 40 : 22);
        // Scores on the input: theirs is a sum over products of H, a rounded result; by products it
        // is one over x itself.
        const bool of_rounded_rows = p.placement == ScorePlacement::INPUT;
        for (size_t i = 0; i < fused.size(); ++i) {
          const double allowed = i == kScoresResult && of_rounded_rows ? 0.8 : 0.3;
          EXPECT_GE(fused[i], by_products[i] - allowed) << (i == 0 ? "out" : "gradient ") << i;
        }
      }
    }
  }
}

TEST_F(ExpertsOnGpu, TorchaosBars) {
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    testing::expect_torchao_bars(name, /*tokens=*/4096, /*dim=*/2048, /*hidden=*/4096, at::kCUDA);
  }
}

// The arithmetic is one; what differs are sums of products and the last bit of an exponential.
TEST_F(ExpertsOnGpu, LayersAgreeWithTheCpu) {
  const ExpertsShape shape{.tokens = 200, .top_k = 2, .experts = 5, .dim = 320, .hidden = 96};
  for (const ExpertsProblem& p : variants(shape)) {
    for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
      for (const ColumnCodes columns : {ColumnCodes::FROM_VALUES, ColumnCodes::FROM_ROW_CODES}) {
        SCOPED_TRACE(c10::str(name, " columns ", int(columns), " activation ", int(p.activation),
                              " placement ", int(p.placement), p.b1.defined() ? " biases" : ""));
        const ExpertsOptions options{.config = config_of(name), .column_codes = columns};
        expect_above(decibels(run_experts(p, options), run_experts(gpu(p), options)), 38);
      }
    }
  }
}

TEST_F(ExpertsOnGpu, RandomLayersAgreeWithFloat64AndRepeat) {
  const char* wanted = std::getenv("MOE8_RANDOM_SHAPES");
  const int count = wanted ? std::stoi(wanted) : 60;
  std::mt19937 random(7);
  const auto pick = [&](std::vector<int64_t> of) { return of[random() % of.size()]; };
  std::map<std::string, Pooled> few_scores;  // by recipe
  for (int i = 0; i < count; ++i) {
    const ExpertsShape shape{.tokens = pick({1, 2, 17, 63, 64, 65, 200, 511}),
                             .top_k = pick({1, 2, 3, 8}),
                             .experts = pick({1, 2, 8, 9, 33}),
                             .dim = pick({16, 40, 64, 100, 257, 512}),
                             .hidden = pick({16, 24, 64, 90, 129, 384})};
    ExpertsProblem p = experts_problem(shape, at::kBFloat16, i, random() % 3 == 0);
    p.activation = random() % 2 ? Activation::SWIGLU : Activation::CLAMPED_SWIGLU;
    p.placement = random() % 2 ? ScorePlacement::OUTPUT : ScorePlacement::INPUT;
    const std::string name = std::vector<std::string>{"bf16", "fp8_rowwise", "mxfp8_rceil",
                                                      "mxfp8_rceil_wgrad_with_hp"}[i % 4];
    SCOPED_TRACE(c10::str(name, " T ", shape.tokens, " k ", shape.top_k, " E ", shape.experts,
                          " d ", shape.dim, " h ", shape.hidden, " number ", i));
    const ExpertsOptions options{.config = config_of(name),
                                 .column_codes = ColumnCodes::FROM_ROW_CODES};
    const ExpertsProblem on_gpu = gpu(p);
    const ExpertsResults once = run_experts(on_gpu, options), again = run_experts(on_gpu, options);
    const ExpertsResults expected = in_float64(p);
    std::vector<double> reached = decibels(expected, once);
    constexpr int64_t kFewScores = 32;
    if (p.scores.numel() < kFewScores) {
      few_scores[name].add(expected.grads[kScoresResult - 1], once.grads[kScoresResult - 1]);
      reached.erase(reached.begin() + kScoresResult);
    }
    expect_above(reached, 17);
    EXPECT_TRUE(same_bits(once.out, again.out));
    for (size_t g = 0; g < once.grads.size(); ++g) {
      EXPECT_TRUE(same_bits(once.grads[g], again.grads[g])) << g;
    }
  }
  for (const auto& [name, errors] : few_scores) EXPECT_GE(errors.decibels(), 17) << name;
}

TEST_F(ExpertsOnGpu, ColumnsFromRowCodesCostAtMostATwentiethOfADecibel) {
  const ExpertsShape shape{.tokens = 2048, .top_k = 4, .experts = 8, .dim = 512, .hidden = 384};
  const ExpertsProblem p = experts_problem(shape, at::kBFloat16, 11);
  const ExpertsResults expected = in_float64(p);
  const auto run = [&](ColumnCodes columns) {
    return run_experts(gpu(p), {.config = recipe("fp8_rowwise"), .column_codes = columns});
  };
  const ExpertsResults values = run(ColumnCodes::FROM_VALUES),
                       codes = run(ColumnCodes::FROM_ROW_CODES);
  EXPECT_TRUE(same_bits(values.out, codes.out));
  const std::vector<double> by_values = decibels(expected, values),
                            by_codes = decibels(expected, codes);
  for (size_t i = 0; i < by_codes.size(); ++i) {
    std::printf("result %zu: %.2f dB from values, %.3f dB lost by codes\n", i, by_values[i],
                by_values[i] - by_codes[i]);
    EXPECT_GE(by_codes[i], by_values[i] - 0.05) << i;
  }
}

// Without a cache, backward makes the weights' codes along columns alone.
TEST_F(ExpertsOnGpu, WeightsAreTheSameCodesWithAndWithoutCache) {
  const ExpertsShape shape{.tokens = 300, .top_k = 2, .experts = 5, .dim = 208, .hidden = 112};
  const ExpertsProblem p = experts_problem(shape, at::kBFloat16, 13);
  const auto run = [&](WeightCache cache) {
    set_weight_cache(cache);
    clear_weight_cache();
    const ExpertsResults results = run_experts(
        gpu(p), {.config = recipe("fp8_rowwise"), .column_codes = ColumnCodes::FROM_ROW_CODES});
    set_weight_cache(WeightCache::AUTO);
    return results;
  };
  const ExpertsResults kept = run(WeightCache::ON), made_again = run(WeightCache::OFF);
  EXPECT_TRUE(same_bits(kept.out, made_again.out));
  for (size_t i = 0; i < kept.grads.size(); ++i) {
    EXPECT_TRUE(same_bits(kept.grads[i], made_again.grads[i])) << i;
  }
}

// What half the memory for hidden rows costs.
TEST_F(ExpertsOnGpu, HiddenRowsMayBeKeptAsCodes) {
  const ExpertsShape shape{.tokens = 2048, .top_k = 4, .experts = 8, .dim = 512, .hidden = 384};
  for (const char* name : {"bf16", "fp8_rowwise"}) {
    const ExpertsProblem p = experts_problem(shape, at::kBFloat16, 12);
    const ExpertsResults expected = in_float64(p);
    const auto run = [&](SavedHidden how) {
      return run_experts(gpu(p), {.config = config_of(name), .saved_hidden = how});
    };
    const ExpertsResults source = run(SavedHidden::SOURCE), codes = run(SavedHidden::FLOAT8);
    EXPECT_TRUE(same_bits(source.out, codes.out)) << name;
    const auto by_source = decibels(expected, source), by_codes = decibels(expected, codes);
    for (size_t i = 0; i < by_codes.size(); ++i) {
      std::printf("%s, result %zu: %.2f dB, %.2f dB with hidden rows as codes\n", name, i,
                  by_source[i], by_codes[i]);
    }
    expect_above(by_codes, 21);
  }
}

// ---- observers --------------------------------------------------------------------
// The kernels write the values beside the codes, and samples of both are measured on the host.
TEST_F(ExpertsOnGpu, BeingWatchedChangesNoBit) {
  const ExpertsShape shape{.tokens = 333, .top_k = 3, .experts = 7, .dim = 256, .hidden = 192};
  for (const ExpertsProblem& p : variants(shape)) {
    for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
      SCOPED_TRACE(c10::str(name, " activation ", int(p.activation), " placement ",
                            int(p.placement), p.b1.defined() ? " biases" : ""));
      const ExpertWeights weights(gpu(p));
      const ExpertsProblem converted = with_weights(gpu(p), weights);
      const ExpertsOptions options{.config = recipe(name)};
      const ExpertsResults unseen = run_experts(converted, options);
      NumericsMonitor monitor(*weights);
      const ExpertsResults seen = run_experts(converted, options);
      monitor.stop();
      EXPECT_TRUE(same_bits(unseen.out, seen.out));
      for (size_t i = 0; i < seen.grads.size(); ++i) {
        EXPECT_TRUE(same_bits(unseen.grads[i], seen.grads[i])) << i;
      }
      const NumericsReport report = monitor.report_later().get();
      ASSERT_EQ(report.weights.size(), 3u);
      for (const WeightNumerics& weight : report.weights) {
        ASSERT_EQ(weight.products.size(), 3u) << weight.fqn;
        for (const ProductNumerics& product : weight.products) {
          EXPECT_EQ(product.calls, 1) << weight.fqn << " " << product.name;
          EXPECT_GT(product.sqnr_db, 22) << weight.fqn << " " << product.name;
          EXPECT_LT(product.sqnr_db, 60) << weight.fqn << " " << product.name;
          EXPECT_GT(product.left.sqnr_db, 24) << weight.fqn << " " << product.name;
          EXPECT_GT(product.right.sqnr_db, 24) << weight.fqn << " " << product.name;
        }
      }
      ASSERT_EQ(report.experts.size(), 1u);
      const at::Tensor counts = at::bincount(p.experts.flatten(), {}, shape.experts);
      for (int64_t e = 0; e < shape.experts; ++e) {
        EXPECT_EQ(report.experts[0].tokens[e], counts[e].item<int64_t>());
      }
    }
  }
}

// ---- edges ----------------------------------------------------------------------
TEST_F(ExpertsOnGpu, SlotsElsewhereAndNoTokens) {
  ExpertsProblem p = experts_problem({.tokens = 40, .top_k = 2, .experts = 4}, at::kBFloat16, 5);
  p.experts.index_put_({at::arange(0, 40, 3), at::zeros({14}, at::kLong)}, at::tensor(int64_t{-1}));
  for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    SCOPED_TRACE(name);
    const ExpertsResults got = run_experts(gpu(p), {.config = config_of(name)});
    expect_above(decibels(in_float64(p), got), 18);
    const at::Tensor ds = got.grads[4].cpu();
    EXPECT_EQ(ds.index({p.experts.lt(0)}).count_nonzero().item<int64_t>(), 0);

    const ExpertsProblem none = experts_problem({.tokens = 0}, at::kBFloat16, 5);
    const ExpertsResults nothing = run_experts(gpu(none), {.config = config_of(name)});
    EXPECT_EQ(nothing.out.size(0), 0);
    for (size_t i = 1; i <= 3; ++i) {
      EXPECT_EQ(nothing.grads[i].count_nonzero().item<int64_t>(), 0) << i;
    }
  }
}

TEST_F(ExpertsOnGpu, OneWeightIsTheTwoThatItHolds) {
  const ExpertsProblem p = gpu(experts_problem({.dim = 128, .hidden = 64}, at::kBFloat16, 9));
  for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    SCOPED_TRACE(name);
    const ExpertsOptions options{.config = config_of(name)};
    const at::Tensor two = moe_experts(p.x, p.w1, p.w3, p.w2, p.experts, p.scores, options);
    const at::Tensor one =
        moe_experts(p.x, at::cat({p.w1, p.w3}, 1), {}, p.w2, p.experts, p.scores, options);
    EXPECT_TRUE(same_bits(two.detach(), one.detach()));
    ExpertsOptions mixed = options;
    mixed.gate_up = GateUpLayout::INTERLEAVED;
    const at::Tensor pairs = at::stack({p.w1, p.w3}, 2).flatten(1, 2);
    const at::Tensor third = moe_experts(p.x, pairs, {}, p.w2, p.experts, p.scores, mixed);
    EXPECT_TRUE(same_bits(two.detach(), third.detach()));
  }
}

// Layers that share converted weights, each on a stream of its own, at the same time.
TEST_F(ExpertsOnGpu, TwoStreamsAtOnce) {
  const ExpertsShape shape{.tokens = 1024, .top_k = 2, .experts = 6, .dim = 512, .hidden = 384};
  for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    SCOPED_TRACE(name);
    std::array<ExpertsProblem, 2> problems{gpu(experts_problem(shape, at::kBFloat16, 21)),
                                           gpu(experts_problem(shape, at::kBFloat16, 22))};
    torch::nn::Module owner("experts");
    for (at::Tensor ExpertsProblem::*weight :
         {&ExpertsProblem::w1, &ExpertsProblem::w3, &ExpertsProblem::w2}) {
      problems[1].*weight = problems[0].*weight;
    }
    owner.register_parameter("w1", problems[0].w1);
    owner.register_parameter("w3", problems[0].w3);
    owner.register_parameter("w2", problems[0].w2);
    if (const auto config = config_of(name)) quantize_(owner, {{"re:w[123]", *config}});

    std::vector<ExpertsResults> alone;
    alone.reserve(problems.size());
    for (const ExpertsProblem& p : problems) alone.push_back(run_experts(p, {}));
    c10::cuda::device_synchronize();
    const std::array<c10::cuda::CUDAStream, 2> streams{c10::cuda::getStreamFromPool(),
                                                       c10::cuda::getStreamFromPool()};
    ASSERT_NE(streams[0].stream(), streams[1].stream());
    std::array<std::vector<ExpertsResults>, 2> together;
    for (int round = 0; round < 6; ++round) {
      for (size_t i = 0; i < 2; ++i) {
        const c10::cuda::CUDAStreamGuard guard(streams[i]);
        together[i].push_back(run_experts(problems[i], {}));
      }
    }
    c10::cuda::device_synchronize();
    for (size_t i = 0; i < 2; ++i) {
      for (const ExpertsResults& got : together[i]) {
        EXPECT_TRUE(same_bits(alone[i].out, got.out)) << i;
        for (size_t g = 0; g < got.grads.size(); ++g) {
          EXPECT_TRUE(same_bits(alone[i].grads[g], got.grads[g])) << i << ", gradient " << g;
        }
      }
    }
  }
}

TEST_F(ExpertsOnGpu, AGraphReplaysWithAnotherRouting) {
  const ExpertsShape shape{.tokens = 256, .top_k = 2, .experts = 6, .dim = 128, .hidden = 64};
  const ExpertsProblem p = gpu(experts_problem(shape, at::kBFloat16, 3));
  const at::Tensor other = gpu(experts_problem(shape, at::kBFloat16, 4).experts);
  for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    SCOPED_TRACE(name);
    const ExpertsOptions options{.config = config_of(name)};
    const at::Tensor experts = p.experts.clone();
    ExpertsProblem q = p;
    q.experts = experts;
    ExpertsResults captured;
    const testing::Graph graph([&] { captured = run_experts(q, options); });
    for (const at::Tensor& routing : {other, p.experts}) {
      experts.copy_(routing);
      c10::cuda::device_synchronize();
      graph.replay();
      ExpertsProblem fresh = p;
      fresh.experts = routing;
      const ExpertsResults expected = run_experts(fresh, options);
      EXPECT_TRUE(same_bits(expected.out, captured.out));
      for (size_t i = 0; i < expected.grads.size(); ++i) {
        EXPECT_TRUE(same_bits(expected.grads[i], captured.grads[i])) << i;
      }
    }
  }
}

}  // namespace
}  // namespace moe8
