// SPDX-License-Identifier: BSD-3-Clause
#include "train/stepper.h"

#include <ATen/core/grad_mode.h>

#include "train/update_rules.h"

namespace moe8 {
namespace {

std::vector<OptimizedParameter> parameters_of(const torch::nn::Module& model,
                                              const OptimizerConfig& config) {
  std::vector<OptimizedParameter> parameters;
  for (const auto& named : model.named_parameters()) {
    const torch::Tensor& parameter = named.value();
    if (!parameter.requires_grad()) continue;
    parameters.push_back(
        {.name = named.key(),
         .tensor = parameter,
         .weight_decay = decays(named.key(), parameter.dim()) ? config.weight_decay : 0,
         .rule = update_rule(config.kind, named.key(), parameter.dim())});
  }
  return parameters;
}

double rate_of(const std::map<std::string, double>& rates, const std::string& name) {
  const auto rate = rates.find(name);
  return rate == rates.end() ? 1 : rate->second;
}

std::vector<ShardedParameter> shared_out(std::vector<OptimizedParameter> parameters,
                                         const ModelPart& part,
                                         const std::map<std::string, double>& rates) {
  std::vector<ShardedParameter> shared;
  for (OptimizedParameter& parameter : parameters) {
    ShardedParameter& one = shared.emplace_back();
    one.rate = rate_of(rates, parameter.name);
    const at::Tensor& tensor = parameter.tensor;
    const HeldAlong held = held_along(parameter.name, tensor, part);
    if (held.parts > 1 && holds_experts(parameter.name, tensor)) {
      one.first_expert = held.first;
      one.experts = held.parts * tensor.size(0);
    } else if (held.parts > 1) {
      one.part = {held.axis, held.first, held.parts * tensor.size(held.axis)};
    }
    one.parameter = std::move(parameter);
  }
  return shared;
}

TensorPiece piece_of(const OwnedRows& rows) {
  return moe8::piece_of(rows.name, rows.first_row, rows.tensor, rows.first_column);
}

OptimizerOptions options_of(const OptimizerConfig& config, Weights weights) {
  return {.beta1 = config.beta1,
          .beta2 = config.beta2,
          .eps = config.eps,
          .momentum = config.momentum,
          .max_grad_norm = config.max_grad_norm,
          .masters = weights == Weights::MASTER,
          .moments = config.moments};
}

}  // namespace

Stepper::Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights,
                 bool sums_in_products, const std::map<std::string, double>& rates) {
  OptimizerOptions options = options_of(config, weights);
  options.sums_in_products = sums_in_products;
  std::map<double, std::vector<OptimizedParameter>> by_rate;
  int64_t number = 0;
  for (OptimizedParameter& parameter : parameters_of(model, config)) {
    parameter.number = number++;  // whatever the other rates are
    by_rate[rate_of(rates, parameter.name)].push_back(std::move(parameter));
  }
  for (auto& [rate, parameters] : by_rate) {
    std::vector<int64_t> numbers;
    for (const OptimizedParameter& parameter : parameters) numbers.push_back(parameter.number);
    alone_.push_back(
        {rate, std::make_unique<Optimizer>(std::move(parameters), options), std::move(numbers)});
  }
  if (alone_.size() > 1) {
    of_norms_ = make_optim_engine(alone_.front().optimizer->stepped().front().device(), 1);
  }
}

Stepper::Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights,
                 const ShardingGroups& groups, const ModelPart& part,
                 const std::map<std::string, double>& rates)
    : shared_(
          std::make_unique<ShardedOptimizer>(shared_out(parameters_of(model, config), part, rates),
                                             options_of(config, weights), groups)) {}

void Stepper::accumulate() {
  if (shared_) return shared_->accumulate();
  for (const Rated& one : alone_) one.optimizer->accumulate();
}

// Whatever their rates, in the order of the model: in the bits of one rate, and of several ranks.
torch::Tensor Stepper::norm_of_all() {
  std::map<int64_t, torch::Tensor> by_number;
  for (const Rated& one : alone_) {
    const std::vector<torch::Tensor>& stepped = one.optimizer->stepped();
    for (size_t i = 0; i < stepped.size(); ++i) {
      const torch::Tensor& grad = stepped[i].grad();
      if (grad.defined()) by_number[one.numbers[i]] = grad.detach().contiguous();
    }
  }
  std::vector<torch::Tensor> grads;
  grads.reserve(by_number.size());
  for (auto& [number, grad] : by_number) grads.push_back(std::move(grad));
  return grads.empty() ? torch::Tensor() : of_norms_->norm(grads);
}

torch::Tensor Stepper::clip_gradients() {
  if (shared_) return shared_->clip_gradients();
  torch::Tensor norm;
  for (const Rated& one : alone_) norm = one.optimizer->clip_gradients();  // takes its gradients
  if (alone_.size() == 1) return norm;
  const at::NoGradGuard no_grad;
  if (const torch::Tensor all = norm_of_all(); all.defined()) norm = all;
  for (const Rated& one : alone_) one.optimizer->clip_gradients(norm);
  return norm;
}

void Stepper::set_learning_rate(double learning_rate) {
  if (shared_) return shared_->set_learning_rate(learning_rate);
  for (const Rated& one : alone_) one.optimizer->set_learning_rate(one.rate * learning_rate);
}

void Stepper::step() {
  if (shared_) return shared_->step();
  for (const Rated& one : alone_) one.optimizer->step();
}

std::vector<torch::Tensor> Stepper::stepped() const {
  std::vector<torch::Tensor> all;
  for (const Rated& one : alone_) {
    const std::vector<torch::Tensor>& own = one.optimizer->stepped();
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

std::vector<TensorPiece> Stepper::state() const {
  std::vector<TensorPiece> pieces;
  for (const Rated& one : alone_) {
    for (auto& [name, tensor] : one.optimizer->state()) pieces.push_back(piece_of(name, 0, tensor));
  }
  if (!shared_) return pieces;
  for (const OwnedRows& rows : shared_->state()) pieces.push_back(piece_of(rows));
  return pieces;
}

std::vector<TensorPiece> Stepper::owned() const {
  std::vector<TensorPiece> pieces;
  for (const OwnedRows& rows : shared_->owned()) pieces.push_back(piece_of(rows));
  return pieces;
}

void Stepper::restore(const PieceReader& files) {
  // A master there must be; reading says so.
  const auto is_there = [&](const std::string& name) {
    return files.contains(name) || name.starts_with("master.");
  };
  for (const Rated& one : alone_) {
    one.optimizer->restore([&](const std::string& name, const at::Tensor& like) {
      return is_there(name) ? read_like(files, name, like) : at::Tensor();
    });
  }
  if (!shared_) return;
  shared_->restore([&](const OwnedRows& rows) {
    return is_there(rows.name) ? read_piece(files, piece_of(rows)) : at::Tensor();
  });
}

}  // namespace moe8
