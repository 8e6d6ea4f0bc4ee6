// SPDX-License-Identifier: BSD-3-Clause
// The routers' losses: their formulas, their gradients, and that a model trains on them.
#include "moe8/router_losses.h"

#include <cmath>

#include "moe8/transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::sqnr_db;

TEST(LoadBalanceLoss, IsOneWhenBalancedAndEWhenOneGetsAll) {
  const at::Tensor even = at::zeros({6, 4});
  const at::Tensor counts = at::full({4}, 3, at::kLong);
  for (const ScoreFunction f : {ScoreFunction::SOFTMAX, ScoreFunction::SIGMOID}) {
    EXPECT_NEAR(load_balance_loss(even, f, counts).item<double>(), 1, 1e-6);
  }
  at::Tensor one = at::full({6, 4}, -50.0);
  one.select(1, 2).fill_(50);
  at::Tensor all = at::zeros({4}, at::kLong);
  all[2] = 6;
  for (const ScoreFunction f : {ScoreFunction::SOFTMAX, ScoreFunction::SIGMOID}) {
    EXPECT_NEAR(load_balance_loss(one, f, all).item<double>(), 4, 1e-5);
  }
}

TEST(LoadBalanceLoss, IsItsFormula) {
  torch::manual_seed(1);
  const at::Tensor logits = at::randn({5, 3}).requires_grad_();
  const at::Tensor counts = at::tensor({1, 4, 5}, at::kLong);
  const at::Tensor loss = load_balance_loss(logits, ScoreFunction::SIGMOID, counts);
  double expected = 0;
  for (int e = 0; e < 3; ++e) {
    double mean = 0;
    for (int t = 0; t < 5; ++t) {
      double sum = 0;
      for (int i = 0; i < 3; ++i) sum += 1 / (1 + std::exp(-logits[t][i].item<double>()));
      mean += 1 / (1 + std::exp(-logits[t][e].item<double>())) / sum / 5;
    }
    expected += 3 * counts[e].item<double>() / 10 * mean;
  }
  EXPECT_NEAR(loss.item<double>(), expected, 1e-6);
  loss.backward();
  EXPECT_GT(logits.grad().abs().max().item<double>(), 0);
}

TEST(RouterZLoss, IsItsFormula) {
  const at::Tensor logits = at::tensor({0.0, 1.0, 2.0, 3.0}).view({2, 2});
  const double a = std::log(std::exp(0.0) + std::exp(1.0)),
               b = std::log(std::exp(2.0) + std::exp(3.0));
  EXPECT_NEAR(router_z_loss(logits.to(at::kFloat)).item<double>(), (a * a + b * b) / 2, 1e-5);
}

TEST(RouterLosses, RefuseWhatDoesNotFit) {
  EXPECT_EQ(error_of([] { router_z_loss(at::zeros({3})); }),
            "[router_z_loss] logits: expected [T, E] with T, E >= 1, got Float [3] on cpu");
  EXPECT_THAT(error_of([] {
                load_balance_loss(at::zeros({2, 3}), ScoreFunction::SOFTMAX, at::zeros({2}));
              }),
              ::testing::HasSubstr("tokens_per_expert: expected [3] on cpu, got "));
}

TransformerConfig layer_config() {
  TransformerConfig config;
  config.dim = config.hidden_dim = 32;
  config.n_experts = 4;
  config.n_shared_experts = 0;
  return config;
}

// The gradient of the gate from the losses alone, when `out` is multiplied by zero.
at::Tensor gate_grad(double aux, double z, double weight, const at::Tensor& x) {
  TransformerConfig config = layer_config();
  config.aux_loss_coeff = aux;
  config.z_loss_coeff = z;
  MoE layer(config);
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
  layer->init_weights(generator, 0.3);
  layer->weigh_router_losses(weight);
  (layer->forward(x) * 0).sum().backward();
  return layer->router->gate->weight.grad();
}

TEST(MoE, BackwardAddsTheLossesOfItsRouter) {
  torch::manual_seed(2);
  const at::Tensor x = at::randn({1, 20, 32});
  TransformerConfig config = layer_config();
  MoE plain(config);
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
  plain->init_weights(generator, 0.3);
  const at::Tensor logits = plain->router->logits(x[0]);
  const Routing routing = plain->router->route(logits, plain->expert_bias);
  (0.5 * load_balance_loss(logits, config.score_function, routing.tokens_per_expert) +
   0.25 * router_z_loss(logits))
      .backward();
  const at::Tensor expected = plain->router->gate->weight.grad();
  EXPECT_GT(sqnr_db(expected, gate_grad(0.5, 0.25, 1, x)), 100);
  EXPECT_GT(sqnr_db(expected, gate_grad(1, 0.5, 0.5, x)), 100);
  EXPECT_EQ(gate_grad(0, 0, 1, x).abs().max().item<double>(), 0);
}

TEST(MoE, CountsTheLossesInTraining) {
  TransformerConfig config = layer_config();
  config.aux_loss_coeff = 0.01;
  MoE layer(config);
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
  layer->init_weights(generator, 0.3);
  const at::Tensor x = at::randn({1, 20, 32});
  const at::Tensor logits = layer->router->logits(x[0]);
  const at::Tensor z = router_z_loss(logits).detach();
  layer->forward(x);
  layer->forward(x);
  EXPECT_NEAR(layer->router_losses[1].item<double>(), 2 * z.item<double>(), 1e-5);
  layer->eval();
  layer->forward(x);
  EXPECT_NEAR(layer->router_losses[1].item<double>(), 2 * z.item<double>(), 1e-5);
  layer->update_expert_bias();
  EXPECT_EQ(layer->router_losses.abs().max().item<double>(), 0);
  EXPECT_FALSE(MoE(layer_config())->router_losses.defined());
}

}  // namespace
}  // namespace moe8
