// SPDX-License-Identifier: BSD-3-Clause
// Router, experts and the MoE layer as modules. What they compute is in src/routing and src/experts.
#include "moe8/model_ops.h"
#include "moe8/transformer.h"
#include "nn/init.h"
#include "nn/linear.h"

namespace moe8 {
// ---- feed-forward -----------------------------------------------------------
FeedForwardImpl::FeedForwardImpl(int64_t dim, int64_t hidden_dim) {
  w1 = register_module("w1", linear_without_bias(dim, hidden_dim));
  w2 = register_module("w2", linear_without_bias(hidden_dim, dim));
  w3 = register_module("w3", linear_without_bias(dim, hidden_dim));
}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x) {
  const torch::Tensor up = linear(x, w3), gate = linear(x, w1);
  return linear(swiglu(gate, up), w2);
}

void FeedForwardImpl::init_weights(at::Generator& generator, double std) {
  trunc_normal_(w1->weight, generator, kInputStd);
  trunc_normal_(w2->weight, generator, std);
  trunc_normal_(w3->weight, generator, std);
}

// ---- router -----------------------------------------------------------------
RouterImpl::RouterImpl(const TransformerConfig& config) : config_(config) {
  gate = register_module("gate", linear_without_bias(config.dim, config.n_experts));
}

Routing RouterImpl::forward(const torch::Tensor& x, const torch::Tensor& expert_bias) {
  const RouterOptions options{.top_k = config_.top_k,
                              .score_function = config_.score_function,
                              .normalize = config_.route_norm,
                              .scale = config_.route_scale};
  return route_tokens(linear(x, gate), options, expert_bias);
}

// ---- experts ----------------------------------------------------------------
ExpertsImpl::ExpertsImpl(const TransformerConfig& c)
    : scores_(c.score_before_experts ? ScorePlacement::INPUT : ScorePlacement::OUTPUT) {
  w1 = register_parameter("w1", torch::zeros({c.n_experts, c.hidden_dim, c.dim}));
  w2 = register_parameter("w2", torch::zeros({c.n_experts, c.dim, c.hidden_dim}));
  w3 = register_parameter("w3", torch::zeros({c.n_experts, c.hidden_dim, c.dim}));
}

torch::Tensor ExpertsImpl::forward(const torch::Tensor& x, const Routing& routing) {
  return moe_experts(x, w1, w3, w2, routing.order, routing.scores, {.scores = scores_});
}

void ExpertsImpl::init_weights(at::Generator& generator, double std) {
  trunc_normal_(w1, generator, kInputStd);
  trunc_normal_(w2, generator, std);
  trunc_normal_(w3, generator, std);
}

// ---- the layer --------------------------------------------------------------
MoEImpl::MoEImpl(const TransformerConfig& config) : config_(config) {
  config.validate();
  router = register_module("router", Router(config));
  experts = register_module("experts", Experts(config));
  if (config.n_shared_experts > 0) {
    shared_experts = register_module(
        "shared_experts", FeedForward(config.dim, config.hidden_dim * config.n_shared_experts));
  }
  if (config.load_balance_coeff > 0) {
    expert_bias = register_buffer("expert_bias", torch::zeros({config.n_experts}));
  }
  tokens_per_expert = register_buffer("tokens_per_expert", torch::zeros({config.n_experts}));
}

torch::Tensor MoEImpl::forward(const torch::Tensor& x) {
  const torch::Tensor rows = x.reshape({-1, config_.dim});  // [T, dim]
  const Routing routing = router(rows, expert_bias);
  if (is_training()) {
    const torch::NoGradGuard no_grad;
    tokens_per_expert.add_(routing.tokens_per_expert);
  }
  torch::Tensor out = experts(rows, routing);
  if (shared_experts) out = out + shared_experts(rows);
  return out.view(x.sizes());
}

void MoEImpl::init_weights(at::Generator& generator, double std) {
  trunc_normal_(router->gate->weight, generator, std);
  experts->init_weights(generator, std);
  if (shared_experts) shared_experts->init_weights(generator, std);
  tokens_per_expert.zero_();
  if (expert_bias.defined()) expert_bias.zero_();
}

void MoEImpl::update_expert_bias() {
  const torch::NoGradGuard no_grad;
  if (expert_bias.defined()) {
    const torch::Tensor step = at::sign(tokens_per_expert.mean() - tokens_per_expert);
    expert_bias.add_(step - step.mean(), config_.load_balance_coeff);
  }
  tokens_per_expert.zero_();
}

void update_expert_bias(torch::nn::Module& model) {
  model.apply([](torch::nn::Module& module) {
    if (auto* layer = module.as<MoEImpl>()) layer->update_expert_bias();
  });
}

}  // namespace moe8
