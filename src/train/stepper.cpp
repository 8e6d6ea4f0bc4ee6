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
    parameters.push_back(
        {.name = named.key(),
         .tensor = parameter,
         .weight_decay = decays(named.key(), parameter.dim()) ? config.weight_decay : 0,
         .rule = update_rule(config.kind, named.key(), parameter.dim())});
  }
  return parameters;
}

std::vector<ShardedParameter> shared_out(std::vector<OptimizedParameter> parameters,
                                         const ModelPart& part) {
  std::vector<ShardedParameter> shared;
  for (OptimizedParameter& parameter : parameters) {
    ShardedParameter& one = shared.emplace_back();
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
                 bool sums_in_products) {
  OptimizerOptions options = options_of(config, weights);
  options.sums_in_products = sums_in_products;
  alone_ = std::make_unique<Optimizer>(parameters_of(model, config), options);
}

Stepper::Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights,
                 const ShardingGroups& groups, const ModelPart& part)
    : shared_(std::make_unique<ShardedOptimizer>(shared_out(parameters_of(model, config), part),
                                                 options_of(config, weights), groups)) {}

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
  if (alone_) {
    alone_->restore([&](const std::string& name, const at::Tensor& like) {
      return is_there(name) ? read_like(files, name, like) : at::Tensor();
    });
    return;
  }
  shared_->restore([&](const OwnedRows& rows) {
    return is_there(rows.name) ? read_piece(files, piece_of(rows)) : at::Tensor();
  });
}

}  // namespace moe8
