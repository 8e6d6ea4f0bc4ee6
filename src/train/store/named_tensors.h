// SPDX-License-Identifier: BSD-3-Clause
// Tensors by name: what a model consists of, and from files back into it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/tensor_pieces.h"

namespace torch::nn {
class Module;
}

namespace moe8 {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Which of the experts of every layer a rank holds.
struct ExpertPart {
  int64_t first = 0;
  int64_t count = 0;  // of all ranks; 0: this one holds all
};

/// True of stacked experts, whose first dimension an ExpertPart is about.
bool holds_experts(std::string_view name, const at::Tensor& tensor);

/// All that a model learned: its parameters and the balancing biases of its experts. They share
/// their data with the model.
NamedTensors learned_tensors(const torch::nn::Module& model);

/// Where row `first_row` of the whole is the first of `tensor`.
TensorPiece piece_of(std::string name, int64_t first_row, const at::Tensor& tensor);

/// Rows of a tensor of the files, from first_row on, as many as `like` has.
/// @throws c10::Error unless they are there, in the dtype of `like`.
at::Tensor read_rows(const PieceReader& files, const std::string& name, int64_t first_row,
                     const at::Tensor& like);

/// A tensor of the files. @throws c10::Error unless it has the shape and dtype of `like`.
at::Tensor read_like(const PieceReader& files, const std::string& name, const at::Tensor& like);

/// Copies the tensors of files into the given ones, in place, of experts those of `part`.
/// @throws c10::Error unless names, shapes and dtypes are the same; nothing is copied then.
void load_into(const NamedTensors& tensors, const PieceReader& files, const ExpertPart& part = {});

}  // namespace moe8
