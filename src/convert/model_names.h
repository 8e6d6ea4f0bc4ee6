// SPDX-License-Identifier: BSD-3-Clause
// A model laid out flat: its modules, parameters and buffers by name, and what conversion must know
// of each.
#pragma once

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "convert/resolve.h"

namespace moe8 {

/// Every module and parameter under every name that it has.
struct ModelNames {
  std::vector<std::pair<std::string, const torch::nn::Module*>> modules;  // in pre-order
  std::vector<ParameterInfo> parameters;
  std::vector<at::Tensor> tensors;               // of `parameters`
  std::vector<const torch::nn::Module*> owners;  // of `parameters`
  std::vector<std::string> buffers;

  std::vector<std::string> module_names() const;
};

/// @throws c10::Error when a module contains itself.
ModelNames names_of(const torch::nn::Module& model);

/// True when `module` is a Linear whose member `weight` is another tensor than its parameter
/// `parameter`: assigning to the member changes what the module computes with and nothing else.
bool computes_with_another(const torch::nn::Module& module, const at::Tensor& parameter);

}  // namespace moe8
