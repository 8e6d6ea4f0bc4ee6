// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/named_tensors.h"

#include <torch/nn/module.h>

#include "base/check.h"

namespace moe8 {
namespace {

constexpr const char* kNamedTensors = "checkpoint";

}  // namespace

NamedTensors learned_tensors(const torch::nn::Module& model) {
  NamedTensors tensors;
  for (const auto& parameter : model.named_parameters()) {
    tensors.emplace_back(parameter.key(), parameter.value().detach());
  }
  for (const auto& buffer : model.named_buffers()) {
    // Counts of tokens are of one step only; the bias is part of what the model learned.
    if (buffer.key().ends_with(".expert_bias")) tensors.emplace_back(buffer.key(), buffer.value());
  }
  return tensors;
}

at::Tensor read_like(const SafetensorsReader& file, const std::string& path,
                     const std::string& name, const at::Tensor& like) {
  const at::Tensor tensor = file.tensor(name);
  MOE8_CHECK(tensor.sizes() == like.sizes() && tensor.scalar_type() == like.scalar_type(),
             kNamedTensors, path, "tensor '", name, "': expected ", like.scalar_type(), " ",
             like.sizes(), ", as in this run's model, got ", tensor.scalar_type(), " ",
             tensor.sizes());
  return tensor;
}

void load_into(const NamedTensors& tensors, const std::string& path) {
  const SafetensorsReader file(path);
  MOE8_CHECK(file.entries().size() == tensors.size(), kNamedTensors, path, "expected the ",
             tensors.size(), " tensors of this run's model, got ", file.entries().size());
  std::vector<at::Tensor> values;
  for (const auto& [name, tensor] : tensors) values.push_back(read_like(file, path, name, tensor));
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].second.copy_(values[i]);
}

}  // namespace moe8
