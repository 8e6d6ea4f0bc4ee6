// SPDX-License-Identifier: BSD-3-Clause
// AdamW on parameters or on their float32 masters.
#include "train/stepper.h"

#include <torch/torch.h>

#include <cmath>

namespace moe8 {
namespace {

// Matrices decay; norms and other vectors do not.
std::vector<torch::optim::OptimizerParamGroup> groups_of(
    const std::vector<torch::Tensor>& parameters, const OptimizerConfig& config) {
  std::vector<torch::Tensor> matrices, vectors;
  for (const torch::Tensor& parameter : parameters) {
    (parameter.dim() >= 2 ? matrices : vectors).push_back(parameter);
  }
  const auto options = [&](double weight_decay) {
    return std::make_unique<torch::optim::AdamWOptions>(
        torch::optim::AdamWOptions(config.learning_rate)
            .betas({config.beta1, config.beta2})
            .eps(config.eps)
            .weight_decay(weight_decay));
  };
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(matrices, options(config.weight_decay));
  groups.emplace_back(vectors, options(0));
  return groups;
}

}  // namespace

Stepper::Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights)
    : parameters_(model.parameters()),
      max_grad_norm_(config.max_grad_norm > 0 ? config.max_grad_norm
                                              : std::numeric_limits<double>::infinity()),
      masters_(weights == Weights::MASTER) {
  for (const torch::Tensor& parameter : parameters_) {
    stepped_.push_back(
        masters_ ? parameter.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true)
                 : parameter);
  }
  adamw_ = std::make_unique<torch::optim::AdamW>(groups_of(stepped_, config));
}

void Stepper::accumulate() {
  if (!masters_) return;
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    torch::Tensor& grad = parameters_[i].mutable_grad();
    if (!grad.defined()) continue;
    torch::Tensor& sum = stepped_[i].mutable_grad();
    if (sum.defined()) {
      sum.add_(grad);
    } else {
      sum = grad.to(at::kFloat);
    }
    grad.reset();
  }
}

double Stepper::step(double learning_rate) {
  const double norm = torch::nn::utils::clip_grad_norm_(stepped_, max_grad_norm_);
  if (!std::isfinite(norm)) return norm;
  set_learning_rate(learning_rate);
  adamw_->step();
  if (masters_) write_back();
  adamw_->zero_grad(/*set_to_none=*/true);
  return norm;
}

void Stepper::set_learning_rate(double learning_rate) {
  for (auto& group : adamw_->param_groups()) {
    static_cast<torch::optim::AdamWOptions&>(group.options()).lr(learning_rate);
  }
}

void Stepper::write_back() {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].copy_(stepped_[i]);
}

}  // namespace moe8
