// SPDX-License-Identifier: BSD-3-Clause
// The layer and the measure of torchao's test of its MoE training (test_training.py): a converted
// MoE layer beside the same one in bf16, by SQNR.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <cstdio>
#include <map>
#include <string>

#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "testing/compare.h"

namespace moe8::testing {

/// Eight experts and a shared one, sigmoid scores on the input, one expert per token, weights of
/// standard deviation 0.02: torchtitan's MoE as that test makes it. Sizes are the caller's.
inline MoE torchao_layer(int64_t dim, int64_t hidden, const at::Device& device) {
  TransformerConfig config;
  config.dim = dim;
  config.hidden_dim = hidden;
  config.n_experts = 8;
  config.top_k = 1;
  config.n_shared_experts = 1;
  config.route_norm = false;
  config.score_before_experts = true;
  MoE layer(config);
  at::Generator generator = at::detail::createCPUGenerator(1);
  layer->init_weights(generator, 0.02);
  cast_parameters_(*layer, at::kBFloat16);
  layer->to(device);
  return layer;
}

/// dB of a layer whose routed experts are converted to `recipe_name`, against the layer in bf16:
/// "out", "grad x" and the gradient of each parameter by name. The loss is the mean squared
/// distance of the result to ones.
inline std::map<std::string, double> decibels_of_torchao_layer(const std::string& recipe_name,
                                                               int64_t tokens, int64_t dim,
                                                               int64_t hidden,
                                                               const at::Device& device) {
  torch::manual_seed(3);
  const at::Tensor x = at::randn({1, tokens, dim}).to(at::kBFloat16).to(device);
  const auto results = [&](MoE& layer) {
    const at::Tensor input = x.detach().clone().requires_grad_();
    const at::Tensor out = layer->forward(input);
    at::mse_loss(out, at::ones_like(out)).backward();
    std::map<std::string, at::Tensor> all{{"out", out.detach().cpu()},
                                          {"grad x", input.grad().cpu()}};
    for (const auto& parameter : layer->named_parameters()) {
      all.emplace(parameter.key(), parameter.value().grad().cpu());
    }
    return all;
  };
  MoE reference = torchao_layer(dim, hidden, device), layer = torchao_layer(dim, hidden, device);
  quantize_(*layer, {{"re:experts\\..*", recipe(recipe_name)}});
  const auto expected = results(reference), got = results(layer);
  std::map<std::string, double> decibels;
  for (const auto& [name, value] : expected) decibels[name] = sqnr_db(value, got.at(name));
  return decibels;
}

/// Prints them, and expects 29, 29 and 23 dB of the result, the gradient of x, and all others. The
/// router's is a sum of differences between experts: it needs rows of about 512 numbers or more.
inline void expect_torchao_bars(const std::string& recipe_name, int64_t tokens, int64_t dim,
                                int64_t hidden, const at::Device& device) {
  for (const auto& [what, db] :
       decibels_of_torchao_layer(recipe_name, tokens, dim, hidden, device)) {
    std::printf("%s, %s: %.1f dB\n", recipe_name.c_str(), what.c_str(), db);
    EXPECT_GE(db, what == "out" || what == "grad x" ? 29 : 23) << recipe_name << ", " << what;
  }
}

}  // namespace moe8::testing
