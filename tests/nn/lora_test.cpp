// SPDX-License-Identifier: BSD-3-Clause
// Adapters beside weights: nothing at first, then what weights with them added compute; who gets
// gradients; what is refused.
#include "moe8/lora.h"

#include <torch/torch.h>

#include <map>
#include <string>

#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "nn/tiny_transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::sqnr_db;

TransformerConfig small_config() {
  TransformerConfig config = testing::tiny_transformer();
  config.n_layers = 2;
  return config;
}

// All that adapters meet: biases, clamps, latents, scores before the experts.
std::map<std::string, TransformerConfig> lora_kinds() {
  TransformerConfig biases = small_config();
  biases.attention_bias = biases.expert_biases = biases.router_bias = true;
  biases.activation = Activation::CLAMPED_SWIGLU;
  biases.swiglu_limit = 0.5;
  TransformerConfig latent = small_config();
  latent.n_kv_heads = latent.n_heads;
  latent.kv_rank = 32;
  latent.q_rank = 16;
  latent.rotary_dim = 16;
  latent.plain_head_dim = 16;
  latent.head_dim = 16;
  TransformerConfig before = small_config();
  before.score_before_experts = true;
  return {{"plain", small_config()}, {"biases", biases}, {"latent", latent}, {"before", before}};
}

const LoraOptions kEverywhere{
    .rank = 4,
    .alpha = 6,
    .targets = {"re:.*\\.attention\\.w.*\\.weight", "re:.*\\.moe\\.experts\\.w[123]",
                "re:.*(feed_forward|shared_experts).w[123].weight"}};

at::Tensor some_tokens() {
  torch::manual_seed(2);
  return at::randint(40, {2, 11}, at::kLong);
}

bool is_adapter(const std::string& name) {
  return name.ends_with("lora_a") || name.ends_with("lora_b");
}

// Adapters and biases that do something.
void randomize(Transformer& model) {
  torch::manual_seed(4);  // whatever was drawn before
  const torch::NoGradGuard no_grad;
  for (const auto& parameter : model->named_parameters()) {
    const bool is_bias = parameter.key().find("bias") != std::string::npos ||
                         parameter.key().find("experts.b") != std::string::npos;
    if (is_adapter(parameter.key()) || is_bias) parameter.value().normal_(0, 0.2);
  }
}

TEST(Lora, ChangesNothingAtFirst) {
  for (const auto& [name, config] : lora_kinds()) {
    Transformer model(config, 3, at::kFloat);
    const at::Tensor before = model(some_tokens());
    add_lora(*model, kEverywhere);
    EXPECT_GT(sqnr_db(before, model(some_tokens())), 110) << name;
  }
}

// One without adapters, whose weights have them in.
Transformer merged_of(const Transformer& model) {
  const auto parameters = model->named_parameters();
  Transformer merged(model->config(), 3, at::kFloat);
  const torch::NoGradGuard no_grad;
  for (const auto& parameter : merged->named_parameters()) {
    parameter.value().copy_(merged_lora(
        parameter.key(), kEverywhere,
        [&](const std::string& one) { return parameters.contains(one); },
        [&](const std::string& one) { return parameters[one]; }));
  }
  return merged;
}

TEST(Lora, ComputesWhatMergedWeightsDo) {
  for (const auto& [name, config] : lora_kinds()) {
    Transformer model(config, 3, at::kFloat);
    add_lora(*model, kEverywhere, 7);
    randomize(model);
    Transformer merged = merged_of(model);
    const torch::NoGradGuard no_grad;
    const at::Tensor with_adapters = model(some_tokens());
    EXPECT_GT(sqnr_db(merged(some_tokens()), with_adapters), 90) << name;
    Transformer bare(config, 3, at::kFloat);
    EXPECT_LT(sqnr_db(bare(some_tokens()), with_adapters), 30) << name;  // they do something
  }
}

TEST(Lora, AdaptersAloneAreTrained) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Transformer model(small_config(), 3, dtype);
    add_lora(*model, kEverywhere);
    randomize(model);
    model(some_tokens()).to(at::kFloat).square().mean().backward();
    std::vector<ParameterShape> trained;
    for (const auto& parameter : model->named_parameters()) {
      const at::Tensor& grad = parameter.value().grad();
      EXPECT_EQ(grad.defined(), is_adapter(parameter.key())) << parameter.key();
      if (!grad.defined()) continue;
      trained.push_back({parameter.key(), parameter.value().sizes().vec()});
      EXPECT_GT(grad.abs().max().item<double>(), 0) << parameter.key();
    }
    std::vector<ParameterShape> expected = lora_shapes(small_config(), kEverywhere);
    const auto by_name = [](const ParameterShape& a, const ParameterShape& b) {
      return a.name < b.name;
    };
    std::ranges::sort(expected, by_name);
    std::ranges::sort(trained, by_name);
    EXPECT_EQ(trained, expected);
  }
}

// The gradients of A and B of one Linear and of the experts, against those of the merged weight.
TEST(Lora, GradientsAreThoseOfTheMergedWeight) {
  Transformer model(small_config(), 3, at::kFloat);
  add_lora(*model, kEverywhere);
  randomize(model);
  const auto parameters = model->named_parameters();
  model(some_tokens()).square().mean().backward();
  Transformer merged = merged_of(model);
  merged(some_tokens()).square().mean().backward();
  const auto compare = [&](const std::string& weight, const std::string& adapter) {
    const at::Tensor grad = merged->named_parameters()[weight].grad();
    const at::Tensor a = parameters[adapter + "lora_a"], b = parameters[adapter + "lora_b"];
    EXPECT_GT(sqnr_db(at::matmul(b.mT(), grad) * 1.5, a.grad()), 80) << weight;
    EXPECT_GT(sqnr_db(at::matmul(grad, a.mT()) * 1.5, b.grad()), 80) << weight;
  };
  compare("layers.0.attention.wk.weight", "layers.0.attention.wk.");
  compare("layers.0.feed_forward.w2.weight", "layers.0.feed_forward.w2.");
  for (const std::string w : {"w1", "w2", "w3"}) {
    compare("layers.1.moe.experts." + w, "layers.1.moe.experts." + w + "_");
  }
}

// Beside a converted weight: its product in its recipe, the adapter's in high precision.
TEST(Lora, StandsBesideConvertedWeights) {
  const FqnToConfig keys{{"re:.*attention\\.w[qkvo]\\.weight", recipe("rowwise")},
                         {"re:.*moe\\.experts\\.w[123]", recipe("fp8_rowwise")}};
  Transformer model(small_config(), 3, at::kFloat), bare(small_config(), 3, at::kFloat);
  add_lora(*model, kEverywhere);
  quantize_(*model, keys);
  quantize_(*bare, keys);
  const at::Tensor converted = bare(some_tokens());
  EXPECT_GT(sqnr_db(converted, model(some_tokens())), 100);
  randomize(model);
  const at::Tensor out = model(some_tokens());
  EXPECT_LT(sqnr_db(converted, out), 40);
  out.square().mean().backward();
  EXPECT_EQ(check_conversion(*model).to_line(), "");
  EXPECT_FALSE(model->named_parameters()["layers.1.moe.experts.w1"].grad().defined());
}

TEST(Lora, TheSeedDecides) {
  const auto made = [](uint64_t seed) {
    Transformer model(small_config(), 3, at::kFloat);
    add_lora(*model, kEverywhere, seed);
    return model->named_parameters()["layers.1.moe.experts.w2_lora_a"].detach().clone();
  };
  EXPECT_TRUE(same_bits(made(1), made(1)));
  EXPECT_FALSE(at::equal(made(1), made(2)));
  const double std = made(1).std().item<double>();
  EXPECT_NEAR(std, 1 / std::sqrt(3.0 * 32), 0.01);
}

TEST(Lora, WhatIsWrongIsSaid) {
  const auto refusal = [](const LoraOptions& options) {
    return error_of([&] { lora_shapes(small_config(), options); });
  };
  EXPECT_THAT(refusal({.targets = {"re:.*\\.router.*"}}),
              HasSubstr("targets: expected weights of Linears in attention or feed-forward, or of "
                        "routed experts, got layers.1.moe.router.gate.weight"));
  EXPECT_THAT(refusal({.targets = {"layers.0.attention.wp.weight"}}),
              HasSubstr("which names none. Did you mean 'layers.0.attention.w"));
  EXPECT_THAT(refusal({.rank = 0}), HasSubstr("rank: expected at least 1, got 0"));
  EXPECT_THAT(refusal({.rank = 100000000}),
              HasSubstr("rank: expected at most 32, the longer side of layers.0.attention.w"));
  Transformer model(small_config(), 3, at::kFloat);
  add_lora(*model, {});
  EXPECT_THAT(error_of([&] { add_lora(*model, {}); }),
              HasSubstr("expected none with adapters, got "));
}

}  // namespace
}  // namespace moe8
