// SPDX-License-Identifier: BSD-3-Clause
// A published model's folder beside what transformers computes with it (compare_transformers.py).
#pragma once

#include <ATen/Functions.h>

#include <algorithm>
#include <map>
#include <string>

#include "moe8/model_ops.h"
#include "moe8/pretrained.h"
#include "moe8/safetensors.h"
#include "moe8/transformer.h"

namespace moe8::testing {

inline Transformer pretrained(const std::string& folder) {
  Transformer model(read_pretrained_config(folder), 0, at::kFloat);
  load_pretrained(*model, folder);
  return model;
}

/// The largest difference over the largest magnitude expected.
inline double relative_difference(const at::Tensor& expected, const at::Tensor& got) {
  const double largest = expected.abs().max().item<double>();
  return (expected - got).abs().max().item<double>() / std::max(largest, 1e-30);
}

/// Of the logits, and of the gradient of every weight, by name.
/// @param gradients  a folder like that of the model, with gradients in place of weights
/// @param expected   a file with tokens, targets and logits
inline std::map<std::string, double> differences(Transformer& model, const std::string& gradients,
                                                 const std::string& expected) {
  std::map<std::string, at::Tensor> there = load_safetensors(expected);
  const at::Tensor logits = model(there["tokens"]);
  std::map<std::string, double> found{{"logits", relative_difference(there["logits"], logits)}};
  cross_entropy(logits, there["targets"]).backward();
  Transformer wanted = pretrained(gradients);
  const auto own = model->named_parameters();
  for (const auto& parameter : wanted->named_parameters()) {
    const at::Tensor& grad = own[parameter.key()].grad();
    found[parameter.key()] = relative_difference(parameter.value().detach(), grad);
  }
  return found;
}

/// Writes a model as it is.
inline void save(const Transformer& model, const std::string& folder,
                 const SavePretrainedOptions& options = {}) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& parameter : model->named_parameters()) {
    tensors[parameter.key()] = parameter.value();
  }
  for (const auto& buffer : model->named_buffers()) tensors[buffer.key()] = buffer.value();
  save_pretrained(
      folder, model->config(), [&](const std::string& name) { return tensors.at(name); },
      at::kFloat, options);
}

}  // namespace moe8::testing
