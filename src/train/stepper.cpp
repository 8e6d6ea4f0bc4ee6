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
    : optimizer_(parameters_of(model, config), options_of(config, weights)) {}

void Stepper::restore(const std::string& path) {
  const SafetensorsReader file(path);
  optimizer_.restore([&](const std::string& name, const at::Tensor& like) {
    // A master there must be; read_like says so.
    const bool is_there = file.contains(name) || name.starts_with("master.");
    return is_there ? read_like(file, path, name, like) : at::Tensor();
  });
}

}  // namespace moe8
