// SPDX-License-Identifier: BSD-3-Clause
// AdamW on parameters or on their float32 masters.
#include "train/stepper.h"

#include <torch/torch.h>

#include <limits>

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
    : max_grad_norm_(config.max_grad_norm > 0 ? config.max_grad_norm
                                              : std::numeric_limits<double>::infinity()),
      masters_(weights == Weights::MASTER) {
  for (const auto& named : model.named_parameters()) {
    const torch::Tensor& parameter = named.value();
    names_.push_back(named.key());
    parameters_.push_back(parameter);
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

// torch::nn::utils::clip_grad_norm_, operation by operation, but for its wait for the norm.
torch::Tensor Stepper::clip_gradients() {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> grads, norms;
  for (const torch::Tensor& one : stepped_) {
    if (!one.grad().defined()) continue;
    grads.push_back(one.grad());
    norms.push_back(one.grad().norm(2.0));
  }
  if (norms.empty()) return at::zeros({}, stepped_.front().options());
  const torch::Tensor norm = norms.size() == 1 ? norms[0] : at::stack(norms).norm(2.0);
  const torch::Tensor factor = at::clamp_max(max_grad_norm_ / (norm + 1e-6), 1.0);
  for (torch::Tensor& grad : grads) grad.mul_(factor);
  return norm;
}

void Stepper::step(double learning_rate) {
  set_learning_rate(learning_rate);
  adamw_->step();
  if (masters_) write_back();
  adamw_->zero_grad(/*set_to_none=*/true);
}

NamedTensors Stepper::state() const {
  NamedTensors tensors;
  const auto& states = adamw_->state();
  for (size_t i = 0; i < names_.size(); ++i) {
    if (masters_) tensors.emplace_back("master." + names_[i], stepped_[i]);
    const auto found = states.find(stepped_[i].unsafeGetTensorImpl());
    if (found == states.end()) continue;  // never had a gradient
    const auto& moments = static_cast<const torch::optim::AdamWParamState&>(*found->second);
    tensors.emplace_back("exp_avg." + names_[i], moments.exp_avg());
    tensors.emplace_back("exp_avg_sq." + names_[i], moments.exp_avg_sq());
    tensors.emplace_back("steps." + names_[i], at::scalar_tensor(moments.step(), at::kLong));
  }
  return tensors;
}

void Stepper::restore(const std::string& path) {
  const torch::NoGradGuard no_grad;
  const SafetensorsReader file(path);
  const at::Tensor count = at::scalar_tensor(0, at::kLong);
  for (size_t i = 0; i < names_.size(); ++i) {
    const torch::Tensor& stepped = stepped_[i];
    const auto read = [&](const char* what, const at::Tensor& like) {
      return read_like(file, path, what + names_[i], like).to(like.device());
    };
    if (masters_) stepped.copy_(read("master.", stepped));
    if (!file.contains("exp_avg." + names_[i])) continue;
    auto moments = std::make_unique<torch::optim::AdamWParamState>();
    moments->exp_avg(read("exp_avg.", stepped));
    moments->exp_avg_sq(read("exp_avg_sq.", stepped));
    moments->step(read("steps.", count).item<int64_t>());
    adamw_->state()[stepped.unsafeGetTensorImpl()] = std::move(moments);
  }
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
