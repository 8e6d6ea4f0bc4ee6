// SPDX-License-Identifier: BSD-3-Clause
// Tensors by name: what a model consists of, and from a file back into it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe8/safetensors.h"

namespace torch::nn {
class Module;
}

namespace moe8 {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// All that a model learned: its parameters and the balancing biases of its experts. They share
/// their data with the model.
NamedTensors learned_tensors(const torch::nn::Module& model);

/// A tensor of the file. @throws c10::Error unless it has the shape and dtype of `like`.
at::Tensor read_like(const SafetensorsReader& file, const std::string& path,
                     const std::string& name, const at::Tensor& like);

/// Copies a file's tensors into the given ones, in place.
/// @throws c10::Error unless names, shapes and dtypes are the same; nothing is copied then.
void load_into(const NamedTensors& tensors, const std::string& path);

}  // namespace moe8
