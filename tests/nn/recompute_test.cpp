// SPDX-License-Identifier: BSD-3-Clause
// Activation checkpointing: the bits, counts, looks at the numerics and uses of weights of a model
// that keeps everything.
#include "nn/recompute.h"

#include <torch/nn/functional/loss.h>

#include "moe8/numerics.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::same_bits;

TransformerConfig small_config() {
  TransformerConfig config;
  config.dim = config.hidden_dim = config.dense_hidden_dim = 32;
  config.n_layers = 2;
  config.n_kv_heads = 2;
  config.max_seq_len = 32;
  config.aux_loss_coeff = 0.1;
  config.z_loss_coeff = 0.01;
  return config;
}

constexpr Recompute kAll[] = {Recompute::NONE, Recompute::SELECTIVE, Recompute::FULL};

struct Pass {
  at::Tensor loss;
  std::vector<std::pair<std::string, at::Tensor>> grads, buffers;
  std::string numerics;
  std::string complaints;
};

// Two batches whose gradients add up.
Pass pass_of(const TransformerConfig& config, const char* recipe_name, Recompute recompute,
             at::ScalarType dtype) {
  Transformer model(config, 3, dtype);
  model->set_recompute(recompute);
  const bool is_converted = std::string_view(recipe_name) != "bf16";
  if (is_converted) {
    quantize_(*model, {{"re:layers.*(experts.w.|wq.weight|w2.weight)", recipe(recipe_name)}});
  }
  const NumericsMonitor monitor(*model);
  torch::manual_seed(4);
  Pass pass;
  for (int i = 0; i < 2; ++i) {
    const at::Tensor tokens = at::randint(256, {2, 32}, at::kLong);
    pass.loss = torch::nn::functional::cross_entropy(
        model->forward(tokens).to(at::kFloat).flatten(0, 1), tokens.roll(1, 1).flatten());
    pass.loss.backward();
  }
  for (const auto& named : model->named_parameters()) {
    pass.grads.emplace_back(named.key(), named.value().grad());
  }
  for (const auto& named : model->named_buffers()) {
    pass.buffers.emplace_back(named.key(), named.value());
  }
  pass.numerics = monitor.report().to_json();
  pass.complaints = check_conversion(*model).to_line();
  return pass;
}

TEST(Recompute, GivesTheSameBitsInEveryRecipe) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
      const Pass kept = pass_of(small_config(), name, Recompute::NONE, dtype);
      for (const Recompute recompute : {Recompute::SELECTIVE, Recompute::FULL}) {
        SCOPED_TRACE(std::string(name) + " " + std::string(to_string(recompute)));
        const Pass again = pass_of(small_config(), name, recompute, dtype);
        EXPECT_TRUE(same_bits(kept.loss, again.loss));
        for (size_t i = 0; i < kept.grads.size(); ++i) {
          ASSERT_TRUE(again.grads[i].second.defined()) << kept.grads[i].first;
          EXPECT_TRUE(same_bits(kept.grads[i].second, again.grads[i].second))
              << kept.grads[i].first;
        }
        for (size_t i = 0; i < kept.buffers.size(); ++i) {
          EXPECT_TRUE(same_bits(kept.buffers[i].second, again.buffers[i].second))
              << kept.buffers[i].first;
        }
        EXPECT_EQ(kept.numerics, again.numerics);
        EXPECT_EQ(again.complaints, "");
      }
    }
  }
}

TEST(Recompute, ReachesParametersWhenTheInputNeedsNoGradient) {
  std::vector<at::Tensor> first;
  for (const Recompute recompute : kAll) {
    Transformer model(small_config(), 3, at::kFloat);
    model->set_recompute(recompute);
    model->tok_embeddings->weight.requires_grad_(false);
    model->forward(at::arange(32).view({1, 32})).square().mean().backward();
    std::vector<at::Tensor> grads;
    for (const at::Tensor& parameter : model->parameters()) {
      if (parameter.requires_grad()) grads.push_back(parameter.grad());
    }
    if (first.empty()) first = grads;
    for (size_t i = 0; i < grads.size(); ++i) EXPECT_TRUE(same_bits(first[i], grads[i])) << i;
  }
}

TEST(Recompute, ComputesTwiceAndSaysWhen) {
  int calls = 0, again = 0;
  const RecomputedPart part = [&](at::TensorList inputs) {
    ++calls;
    again += is_recomputing();
    return inputs[0] * inputs[1];
  };
  const at::Tensor x = at::ones({3}).requires_grad_(), y = at::full({3}, 2.0);
  const at::Tensor out = recomputed_in_backward(part, {x, y});
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(again, 0);
  out.sum().backward();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(again, 1);
  EXPECT_FALSE(is_recomputing());
  EXPECT_TRUE(same_bits(x.grad(), y));
  EXPECT_FALSE(y.grad().defined());
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(recomputed_in_backward(part, {x, y}).requires_grad());
}

}  // namespace
}  // namespace moe8
