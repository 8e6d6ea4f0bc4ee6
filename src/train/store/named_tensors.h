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

/// What of a model a rank holds: some experts, and parts of the weights that its tensor group shares
/// out (moe8/tensor_parallel.h).
struct ModelPart {
  ExpertPart experts{};
  int64_t tensor_rank = 0;
  int64_t tensor_size = 1;
};

/// Along which axis a rank holds a part of this tensor, and of how many parts the whole is made.
struct HeldAlong {
  int64_t axis = 0;
  int64_t first = 0;  // where the part begins
  int64_t parts = 1;  // 1: it holds all
};
HeldAlong held_along(std::string_view name, const at::Tensor& tensor, const ModelPart& part);

/// All that a model learned: its parameters and the balancing biases of its experts. They share
/// their data with the model; those of weights kept as codes (nn/frozen_codes.h) are made, on the CPU.
NamedTensors learned_tensors(const torch::nn::Module& model);

/// A piece that begins there in the whole tensor.
TensorPiece piece_of(std::string name, int64_t first_row, const at::Tensor& tensor,
                     int64_t first_column = 0);

/// What `piece.data` has room for of a tensor of the files.
/// @throws c10::Error unless it is there, in the dtype of `piece.data`.
at::Tensor read_piece(const PieceReader& files, const TensorPiece& piece);

/// A tensor of the files. @throws c10::Error unless it has the shape and dtype of `like`.
at::Tensor read_like(const PieceReader& files, const std::string& name, const at::Tensor& like);

/// Copies the tensors of files into the given ones, in place: what `part` says that these are of the
/// whole ones.
/// @throws c10::Error unless names, shapes and dtypes are the same; nothing is copied then.
void load_into(const NamedTensors& tensors, const PieceReader& files, const ModelPart& part = {});

}  // namespace moe8
