// SPDX-License-Identifier: BSD-3-Clause
// Router, experts and the MoE layer as modules. What they compute is in src/routing and src/experts.
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <utility>

#include "autograd/shared_input.h"
#include "base/check.h"
#include "moe8/model_ops.h"
#include "moe8/router_losses.h"
#include "moe8/transformer.h"
#include "nn/frozen_codes.h"
#include "nn/init.h"
#include "nn/linear.h"
#include "nn/recompute.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// out as it is; a backward that comes through it starts one from the losses, with these weights.
struct WithLosses : torch::autograd::Function<WithLosses> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& out, const at::Tensor& losses,
                            const std::vector<double>& weights) {
    ctx->saved_data["weights"] = weights;
    ctx->saved_data["device"] = losses.device();
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const std::vector<double> weights = ctx->saved_data["weights"].toDoubleVector();
    const c10::Device device = ctx->saved_data["device"].toDevice();
    at::Tensor of_losses = at::empty({2}, at::dtype(at::kFloat).device(device));
    for (int64_t i = 0; i < 2; ++i) of_losses[i].fill_(weights[static_cast<size_t>(i)]);
    return {grads[0], of_losses, {}};
  }
};

}  // namespace

// ---- feed-forward -----------------------------------------------------------
FeedForwardImpl::FeedForwardImpl(int64_t dim, int64_t hidden_dim, Group tensor_group)
    : group_(std::move(tensor_group)) {
  w1 = register_module("w1", column_parallel_linear(dim, hidden_dim, group_));
  w2 = register_module("w2", row_parallel_linear(hidden_dim, dim, group_));
  w3 = register_module("w3", column_parallel_linear(dim, hidden_dim, group_));
}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x) {
  const int64_t positions = x.dim() - 2;
  const torch::Tensor all = gather_sequence(group_, x, positions);
  const auto [up, gate] = [&]() -> std::array<torch::Tensor, 2> {
    const SharedInput quantized_once(all);
    return {linear(all, w3), linear(all, w1)};
  }();
  return reduce_scatter_sequence(group_, linear(swiglu(gate, up), w2), positions);
}

void FeedForwardImpl::init_weights(at::Generator& generator, double std) {
  trunc_normal_rows_(w1->weight, generator, kInputStd, group_);
  trunc_normal_columns_(w2->weight, generator, std, group_);
  trunc_normal_rows_(w3->weight, generator, std, group_);
}

// ---- router -----------------------------------------------------------------
RouterImpl::RouterImpl(const TransformerConfig& config) : config_(config) {
  const int64_t dim = config.dim, experts = config.n_experts;
  gate = register_module("gate", config.router_bias ? linear_with_bias(dim, experts)
                                                    : linear_without_bias(dim, experts));
}

Routing RouterImpl::forward(const torch::Tensor& x, const torch::Tensor& expert_bias) {
  return route(logits(x), expert_bias);
}

torch::Tensor RouterImpl::logits(const torch::Tensor& x) {
  return linear(x, gate);
}

Routing RouterImpl::route(const torch::Tensor& logits, const torch::Tensor& expert_bias) const {
  const RouterOptions options{.top_k = config_.top_k,
                              .score_function = config_.score_function,
                              .normalize = config_.route_norm,
                              .scale = config_.route_scale,
                              .n_groups = config_.n_expert_groups,
                              .top_k_groups = config_.top_k_groups};
  return route_tokens(logits, options, expert_bias);
}

// ---- experts ----------------------------------------------------------------
ExpertsImpl::ExpertsImpl(const TransformerConfig& c, const Group& group)
    : group_(group),
      fixed_{.activation = c.activation,
             .alpha = c.swiglu_alpha,
             .limit = c.swiglu_limit,
             .scores = c.score_before_experts ? ScorePlacement::INPUT : ScorePlacement::OUTPUT} {
  MOE8_CHECK(c.n_experts % group.size() == 0, "Experts", "group",
             "expected a divisor of n_experts = ", c.n_experts, ", got ", group.size(), " ranks");
  const int64_t own = c.n_experts / group.size();
  const auto zeros = [&](const char* name, at::IntArrayRef sizes) {
    return register_parameter(name, new_parameter(sizes, 0));
  };
  w1 = zeros("w1", {own, c.hidden_dim, c.dim});
  w2 = zeros("w2", {own, c.dim, c.hidden_dim});
  w3 = zeros("w3", {own, c.hidden_dim, c.dim});
  if (!c.expert_biases) return;
  b1 = zeros("b1", {own, c.hidden_dim});
  b2 = zeros("b2", {own, c.dim});
  b3 = zeros("b3", {own, c.hidden_dim});
}

ExpertsOptions ExpertsImpl::options() const {
  ExpertsOptions options = fixed_;
  options.b1 = b1, options.b2 = b2, options.b3 = b3;
  options.adapter1 = lora1, options.adapter2 = lora2, options.adapter3 = lora3;
  options.adapter_scale = lora_scale;
  return options;
}

torch::Tensor ExpertsImpl::forward(const torch::Tensor& x, const Routing& routing) {
  if (group_.size() > 1) {
    const TokenExchange exchange(group_, routing.experts, group_.size() * w1.size(0));
    return forward_in(exchange, x, routing);
  }
  return moe_experts(x, weight_of(*this, w1, "w1"), weight_of(*this, w3, "w3"),
                     weight_of(*this, w2, "w2"), routing.order, routing.scores, options());
}

torch::Tensor ExpertsImpl::forward_in(const TokenExchange& exchange, const torch::Tensor& x,
                                      const Routing& routing) {
  return moe_experts_parallel(exchange, x, weight_of(*this, w1, "w1"), weight_of(*this, w3, "w3"),
                              weight_of(*this, w2, "w2"), routing.scores, options());
}

void ExpertsImpl::init_weights(at::Generator& generator, double std) {
  trunc_normal_(w1, generator, kInputStd, group_.rank() * w1.numel());
  trunc_normal_(w2, generator, std, group_.rank() * w2.numel());
  trunc_normal_(w3, generator, std, group_.rank() * w3.numel());
  for (torch::Tensor* bias : {&b1, &b2, &b3}) {
    if (bias->defined()) bias->zero_();
  }
}

// ---- the layer --------------------------------------------------------------
MoEImpl::MoEImpl(const TransformerConfig& config, const Group& group, const Group& tensor_group)
    : config_(config) {
  config.validate();
  router = register_module("router", Router(config));
  experts = register_module("experts", Experts(config, group));
  if (config.n_shared_experts > 0) {
    const int64_t hidden = config.hidden_dim * config.n_shared_experts;
    shared_experts =
        register_module("shared_experts", FeedForward(config.dim, hidden, tensor_group));
    shares_positions_ = tensor_group.size() > 1;
  }
  if (config.load_balance_coeff > 0) {
    expert_bias = register_buffer("expert_bias", torch::zeros({config.n_experts}));
  }
  tokens_per_expert = register_buffer("tokens_per_expert", torch::zeros({config.n_experts}));
  if (config.aux_loss_coeff > 0 || config.z_loss_coeff > 0) {
    router_losses = register_buffer("router_losses", torch::zeros({2}));
  }
}

// The positions of other ranks go between those of x, which rows no longer tell apart.
torch::Tensor MoEImpl::shared(const torch::Tensor& x, const torch::Tensor& rows) {
  return shares_positions_ ? shared_experts(x).view(rows.sizes()) : shared_experts(rows);
}

torch::Tensor MoEImpl::with_experts(const torch::Tensor& x, const torch::Tensor& rows,
                                    const Routing& routing) {
  if (experts->group().size() > 1) {
    // While ranks tell each other how many tokens to expect, the shared experts compute.
    const TokenExchange exchange(experts->group(), routing.experts, config_.n_experts);
    if (!shared_experts) return experts->forward_in(exchange, rows, routing);
    const torch::Tensor of_shared = shared(x, rows);
    return experts->forward_in(exchange, rows, routing) + of_shared;
  }
  const torch::Tensor out = experts(rows, routing);
  return shared_experts ? out + shared(x, rows) : out;
}

torch::Tensor MoEImpl::forward(const torch::Tensor& x) {
  const torch::Tensor rows = x.reshape({-1, config_.dim});  // [T, dim]
  const torch::Tensor logits = router->logits(rows);
  const Routing routing = router->route(logits, expert_bias);
  const bool counts = is_training() && !is_recomputing();
  if (counts) {
    const torch::NoGradGuard no_grad;
    tokens_per_expert.add_(routing.tokens_per_expert);
  }
  const torch::Tensor out = with_experts(x, rows, routing).view(x.sizes());
  if (!is_training() || !router_losses.defined()) return out;
  const torch::Tensor losses =
      at::stack({load_balance_loss(logits, config_.score_function, routing.tokens_per_expert),
                 router_z_loss(logits)});
  if (counts) {
    const torch::NoGradGuard no_grad;
    router_losses.add_(losses);
  }
  return WithLosses::apply(out, losses,
                           std::vector<double>{router_loss_weight_ * config_.aux_loss_coeff,
                                               router_loss_weight_ * config_.z_loss_coeff});
}

void MoEImpl::init_weights(at::Generator& generator, double std) {
  trunc_normal_(router->gate->weight, generator, std);
  zero_biases_({&router->gate});
  experts->init_weights(generator, std);
  if (shared_experts) shared_experts->init_weights(generator, std);
  tokens_per_expert.zero_();
  if (router_losses.defined()) router_losses.zero_();
  if (expert_bias.defined()) expert_bias.zero_();
}

void MoEImpl::update_expert_bias() {
  const torch::NoGradGuard no_grad;
  if (expert_bias.defined()) {
    const torch::Tensor step = at::sign(tokens_per_expert.mean() - tokens_per_expert);
    expert_bias.add_(step - step.mean(), config_.load_balance_coeff);
  }
  tokens_per_expert.zero_();
  if (router_losses.defined()) router_losses.zero_();
}

void weigh_router_losses(torch::nn::Module& model, double weight) {
  model.apply([weight](torch::nn::Module& module) {
    if (auto* layer = module.as<MoEImpl>()) layer->weigh_router_losses(weight);
  });
}

void update_expert_bias(torch::nn::Module& model) {
  model.apply([](torch::nn::Module& module) {
    if (auto* layer = module.as<MoEImpl>()) layer->update_expert_bias();
  });
}

}  // namespace moe8
