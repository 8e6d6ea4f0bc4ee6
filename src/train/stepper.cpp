// SPDX-License-Identifier: BSD-3-Clause
#include "train/stepper.h"

#include "train/update_rules.h"

namespace moe8 {
namespace {

std::vector<OptimizedParameter> parameters_of(const torch::nn::Module& model,
                                              const OptimizerConfig& config) {
  std::vector<OptimizedParameter> parameters;
  for (const auto& named : model.named_parameters()) {
    const torch::Tensor& parameter = named.value();
    parameters.push_back({.name = named.key(),
                          .tensor = parameter,
                          .weight_decay = decays(parameter.dim()) ? config.weight_decay : 0,
                          .rule = update_rule(config.kind, named.key(), parameter.dim())});
  }
  return parameters;
}

std::vector<ShardedParameter> shared_out(std::vector<OptimizedParameter> parameters,
                                         const ExpertPart& experts) {
  std::vector<ShardedParameter> shared;
  for (OptimizedParameter& parameter : parameters) {
    ShardedParameter& one = shared.emplace_back();
    if (experts.count > 0 && holds_experts(parameter.name, parameter.tensor)) {
      one.first_expert = experts.first;
      one.experts = experts.count;
    }
    one.parameter = std::move(parameter);
  }
  return shared;
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

Stepper::Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights)
    : alone_(
          std::make_unique<Optimizer>(parameters_of(model, config), options_of(config, weights))) {}

Stepper::Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights,
                 const Group& data, const Group& expert_data, const ExpertPart& experts)
    : shared_(std::make_unique<ShardedOptimizer>(shared_out(parameters_of(model, config), experts),
                                                 options_of(config, weights), data, expert_data)) {}

void Stepper::accumulate() {
  alone_ ? alone_->accumulate() : shared_->accumulate();
}

torch::Tensor Stepper::clip_gradients() {
  return alone_ ? alone_->clip_gradients() : shared_->clip_gradients();
}

void Stepper::set_learning_rate(double learning_rate) {
  alone_ ? alone_->set_learning_rate(learning_rate) : shared_->set_learning_rate(learning_rate);
}

void Stepper::step() {
  alone_ ? alone_->step() : shared_->step();
}

std::vector<TensorPiece> Stepper::state() const {
  std::vector<TensorPiece> pieces;
  if (alone_) {
    for (auto& [name, tensor] : alone_->state()) pieces.push_back(piece_of(name, 0, tensor));
    return pieces;
  }
  for (auto& [name, first_row, tensor] : shared_->state()) {
    pieces.push_back(piece_of(name, first_row, tensor));
  }
  return pieces;
}

std::vector<TensorPiece> Stepper::owned() const {
  std::vector<TensorPiece> pieces;
  for (auto& [name, first_row, tensor] : shared_->owned()) {
    pieces.push_back(piece_of(name, first_row, tensor));
  }
  return pieces;
}

void Stepper::restore(const PieceReader& files) {
  // A master there must be; reading says so.
  const auto is_there = [&](const std::string& name) {
    return files.contains(name) || name.starts_with("master.");
  };
  if (alone_) {
    alone_->restore([&](const std::string& name, const at::Tensor& like) {
      return is_there(name) ? read_like(files, name, like) : at::Tensor();
    });
    return;
  }
  shared_->restore([&](const std::string& name, int64_t first_row, const at::Tensor& like) {
    return is_there(name) ? read_rows(files, name, first_row, like) : at::Tensor();
  });
}

int64_t Stepper::take_bytes_sent() {
  return shared_ ? shared_->take_bytes_sent() : 0;
}

double Stepper::take_seconds_waited() {
  return shared_ ? shared_->take_seconds_waited() : 0;
}

}  // namespace moe8
