// SPDX-License-Identifier: BSD-3-Clause
// Router and MoE layer against loops over tokens; gradients, empty experts, the balancing bias.
#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <cmath>

#include "moe8/transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::same_bits;
using testing::sqnr_db;

TransformerConfig small_config() {
  TransformerConfig config;
  config.dim = 32;
  config.hidden_dim = 24;
  config.n_experts = 6;
  config.top_k = 2;
  config.n_shared_experts = 1;
  return config;
}

MoE make_moe(const TransformerConfig& config, uint64_t seed = 1) {
  MoE moe(config);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  moe->init_weights(generator, 0.3);  // large enough that experts differ visibly
  const torch::NoGradGuard no_grad;
  moe->experts->w1.mul_(10);
  return moe;
}

at::Tensor swiglu(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                  const at::Tensor& w3) {
  return at::matmul(w2, at::silu(at::matmul(w1, x)) * at::matmul(w3, x));
}

// One token at a time, one expert at a time: what the layer means.
at::Tensor slow_moe(const MoE& moe, const TransformerConfig& config, const at::Tensor& x) {
  std::vector<at::Tensor> outs;
  const at::Tensor rows = x.reshape({-1, config.dim});
  for (int64_t t = 0; t < rows.size(0); ++t) {
    const at::Tensor logits = at::matmul(moe->router->gate->weight, rows[t]);
    const at::Tensor scores = config.score_function == ScoreFunction::SIGMOID
                                  ? at::sigmoid(logits)
                                  : at::softmax(logits, 0);
    at::Tensor preference = scores.detach().clone();
    if (moe->expert_bias.defined()) preference += moe->expert_bias;
    std::vector<int64_t> chosen;
    for (int64_t k = 0; k < config.top_k; ++k) {
      chosen.push_back(preference.argmax().item<int64_t>());
      preference[chosen.back()] = -INFINITY;
    }
    at::Tensor sum = at::zeros({});
    for (const int64_t e : chosen) sum = sum + scores[e];
    at::Tensor out = at::zeros({config.dim});
    for (const int64_t e : chosen) {
      const at::Tensor score =
          (config.route_norm ? scores[e] / sum : scores[e]) * config.route_scale;
      const auto expert = [&](const at::Tensor& in) {
        return swiglu(in, moe->experts->w1[e], moe->experts->w2[e], moe->experts->w3[e]);
      };
      out = out + (config.score_before_experts ? expert(rows[t] * score) : expert(rows[t]) * score);
    }
    if (moe->shared_experts) {
      out = out + swiglu(rows[t], moe->shared_experts->w1->weight, moe->shared_experts->w2->weight,
                         moe->shared_experts->w3->weight);
    }
    outs.push_back(out);
  }
  return at::stack(outs).view(x.sizes());
}

std::vector<TransformerConfig> routing_variants() {
  std::vector<TransformerConfig> list;
  for (const ScoreFunction function : {ScoreFunction::SOFTMAX, ScoreFunction::SIGMOID}) {
    for (const bool norm : {false, true}) {
      TransformerConfig config = small_config();
      config.score_function = function;
      config.route_norm = norm;
      config.route_scale = norm ? 2.5 : 1.0;
      config.score_before_experts = norm;
      config.n_shared_experts = norm ? 2 : 0;
      config.load_balance_coeff = norm ? 0 : 1e-3;
      list.push_back(config);
    }
  }
  return list;
}

TEST(MoE, EqualsALoopOverTokens) {
  for (const TransformerConfig& config : routing_variants()) {
    MoE moe = make_moe(config);
    torch::manual_seed(2);
    if (moe->expert_bias.defined()) moe->expert_bias.copy_(at::randn({config.n_experts}) * 0.1);
    const at::Tensor x = at::randn({2, 9, config.dim});
    EXPECT_GT(sqnr_db(slow_moe(moe, config, x), moe(x)), 110) << to_string(config.score_function);
  }
}

TEST(MoE, GradientsEqualThoseOfTheLoop) {
  for (const TransformerConfig& config : routing_variants()) {
    MoE moe = make_moe(config);
    torch::manual_seed(3);
    const at::Tensor x = at::randn({2, 7, config.dim}).requires_grad_();
    const at::Tensor upstream = at::randn({2, 7, config.dim});
    std::vector<at::Tensor> inputs = moe->parameters();
    inputs.push_back(x);
    const auto expected = torch::autograd::grad({slow_moe(moe, config, x)}, inputs, {upstream});
    const auto got = torch::autograd::grad({moe(x)}, inputs, {upstream});
    for (size_t i = 0; i < inputs.size(); ++i) EXPECT_GT(sqnr_db(expected[i], got[i]), 100) << i;
  }
}

TEST(Router, ScoresAndCounts) {
  TransformerConfig config = small_config();
  config.top_k = 3;
  config.route_scale = 1.5;
  MoE moe = make_moe(config);
  const Routing routing = moe->router(at::randn({50, config.dim}), moe->expert_bias);
  EXPECT_EQ(routing.experts.sizes(), (std::vector<int64_t>{50, 3}));
  EXPECT_EQ(routing.scores.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(routing.scores.sum(1), at::full({50}, 1.5)));
  EXPECT_TRUE(same_bits(at::bincount(routing.experts.flatten(), {}, 6), routing.tokens_per_expert));
}

// A bias changes who is chosen; what the chosen contribute stays their own score.
TEST(Router, BiasDecidesTheChoiceButNotTheScores) {
  TransformerConfig config = small_config();
  config.top_k = 1;
  config.route_norm = false;
  MoE moe = make_moe(config);
  const at::Tensor x = at::randn({20, config.dim});
  moe->expert_bias[4] = 100;
  const Routing routing = moe->router(x, moe->expert_bias);
  EXPECT_TRUE(at::all(routing.experts == 4).item<bool>());
  EXPECT_TRUE(at::allclose(routing.scores, at::sigmoid(moe->router->gate(x)).narrow(1, 4, 1)));
}

TEST(MoE, AllTokensToOneExpertAndTheOthersEmpty) {
  TransformerConfig config = small_config();
  config.top_k = 1;
  MoE moe = make_moe(config);
  moe->expert_bias[3] = 100;
  const at::Tensor x = at::randn({1, 33, config.dim});
  const at::Tensor out = moe(x);
  EXPECT_GT(sqnr_db(slow_moe(moe, config, x), out), 110);
  out.square().sum().backward();
  for (const at::Tensor& w : {moe->experts->w1, moe->experts->w2, moe->experts->w3}) {
    for (int64_t e = 0; e < config.n_experts; ++e) {
      EXPECT_EQ(w.grad()[e].abs().max().item<double>() == 0, e != 3) << e;
    }
  }
}

TEST(MoE, OneTokenOnly) {
  const TransformerConfig config = small_config();
  MoE moe = make_moe(config);
  const at::Tensor x = at::randn({1, 1, config.dim});
  EXPECT_GT(sqnr_db(slow_moe(moe, config, x), moe(x)), 110);
}

TEST(MoE, CountsTokensInTrainingOnlyAndAddsThemUp) {
  const TransformerConfig config = small_config();
  MoE moe = make_moe(config);
  moe(at::randn({2, 5, config.dim}));
  moe(at::randn({2, 5, config.dim}));
  EXPECT_EQ(moe->tokens_per_expert.sum().item<int64_t>(), config.top_k * 2 * 10);
  moe->eval();
  moe(at::randn({2, 5, config.dim}));
  EXPECT_EQ(moe->tokens_per_expert.sum().item<int64_t>(), config.top_k * 2 * 10);
}

TEST(ExpertBias, RisesForStarvedExpertsAndFallsForBusyOnes) {
  TransformerConfig config = small_config();
  config.load_balance_coeff = 0.5;
  MoE moe = make_moe(config);
  moe->tokens_per_expert.copy_(at::tensor({30.0, 10.0, 10.0, 10.0, 0.0, 0.0}));  // mean 10
  update_expert_bias(*moe);
  // Steps -1 0 0 0 +1 +1, their mean 1/6 taken off, times 0.5.
  EXPECT_TRUE(
      at::allclose(moe->expert_bias,
                   0.5 * (at::tensor({-1.0, 0.0, 0.0, 0.0, 1.0, 1.0}) - 1.0 / 6).to(at::kFloat)));
  EXPECT_EQ(moe->tokens_per_expert.abs().sum().item<double>(), 0);
  EXPECT_FALSE(moe->expert_bias.requires_grad());
}

TEST(ExpertBias, BalancesALopsidedRouter) {
  TransformerConfig config = small_config();
  config.load_balance_coeff = 0.01;
  config.top_k = 1;
  MoE moe = make_moe(config);
  {
    const torch::NoGradGuard no_grad;
    moe->router->gate->weight.mul_(0.05)[2].fill_(0.02);
  }
  const at::Tensor x = at::randn({1, 300, config.dim}) + 1;  // leans towards expert 2
  const auto share_of_busiest = [&] {
    moe->tokens_per_expert.zero_();
    moe(x);
    return moe->tokens_per_expert.max().item<double>() / 300;
  };
  const double before = share_of_busiest();
  for (int step = 0; step < 120; ++step) {
    moe(x);
    update_expert_bias(*moe);
  }
  EXPECT_GT(before, 0.5);
  EXPECT_LT(share_of_busiest(), 0.35);
}

TEST(ExpertBias, CoefficientZeroMeansNoBuffer) {
  TransformerConfig config = small_config();
  config.load_balance_coeff = 0;
  MoE moe = make_moe(config);
  EXPECT_FALSE(moe->expert_bias.defined());
  EXPECT_FALSE(moe->named_buffers().contains("expert_bias"));
  moe(at::randn({1, 4, config.dim}));
  update_expert_bias(*moe);
  EXPECT_EQ(moe->tokens_per_expert.sum().item<double>(), 0);
}

TEST(MoE, TwiceTheSameBits) {
  const TransformerConfig config = small_config();
  MoE moe = make_moe(config);
  cast_parameters_(*moe, at::kBFloat16);
  const at::Tensor x = at::randn({4, 64, config.dim}).to(at::kBFloat16);
  const auto run = [&] {
    const at::Tensor in = x.clone().requires_grad_();
    const at::Tensor out = moe(in);
    const auto grads = torch::autograd::grad({out.to(at::kFloat).square().sum()},
                                             {in, moe->experts->w1, moe->router->gate->weight});
    return std::vector<at::Tensor>{out.detach(), grads[0], grads[1], grads[2]};
  };
  const auto first = run(), second = run();
  for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(same_bits(first[i], second[i])) << i;
}

TEST(MoE, Bfloat16StaysCloseToFloat32) {
  const TransformerConfig config = small_config();
  MoE moe = make_moe(config);
  cast_parameters_(*moe, at::kBFloat16);
  MoE wide = make_moe(config);
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : wide->named_parameters()) {
      parameter.value().copy_(moe->named_parameters()[parameter.key()]);
    }
    // The choice of experts is what rounding could flip: make it far from a tie.
    for (const MoE& m : {moe, wide})
      m->expert_bias.copy_(at::tensor({0.0, 9.0, 0.0, 0.0, 9.0, 0.0}));
  }
  const at::Tensor x = at::randn({2, 40, config.dim}).to(at::kBFloat16);
  const at::Tensor out = moe(x);
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_EQ(moe->expert_bias.scalar_type(), at::kFloat);
  EXPECT_GT(sqnr_db(wide(x.to(at::kFloat)), out), 38);
}

TEST(ScoreFunction, NamesBothWays) {
  EXPECT_EQ(parse_score_function("softmax"), ScoreFunction::SOFTMAX);
  EXPECT_EQ(to_string(ScoreFunction::SIGMOID), "sigmoid");
  EXPECT_EQ(error_of([] { parse_score_function("relu"); }),
            "[ScoreFunction] name: expected one of softmax, sigmoid, got 'relu'");
}

}  // namespace
}  // namespace moe8
