// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/named_tensors.h"

#include <torch/nn/module.h>

#include "base/check.h"
#include "moe8/tensor_parallel.h"
#include "nn/frozen_codes.h"

namespace moe8 {
namespace {

constexpr const char* kNamedTensors = "checkpoint";

std::vector<int64_t> sizes_of(const PieceReader& files, const std::string& name,
                              const at::Tensor& like) {
  const std::vector<int64_t> sizes = files.sizes(name);
  const std::string& dtype = files.dtype(name);
  MOE8_CHECK(dtype == PieceReader::dtype_name(like.scalar_type()) &&
                 static_cast<int64_t>(sizes.size()) == like.dim(),
             kNamedTensors, files.where(), "tensor '", name, "': expected ", like.scalar_type(),
             " ", like.sizes(), ", as in this run's model, got ", PieceReader::dtype_of(dtype), " ",
             at::IntArrayRef(sizes));
  return sizes;
}

}  // namespace

bool holds_experts(std::string_view name, const at::Tensor& tensor) {
  const int64_t per_expert = tensor.dim() - 1;
  return per_expert >= 1 && name.find(".experts.") != std::string_view::npos;
}

NamedTensors learned_tensors(const torch::nn::Module& model) {
  NamedTensors tensors;
  const auto buffers = model.named_buffers();
  for (const auto& parameter : model.named_parameters()) {
    const auto& [name, weight] = parameter.pair();
    tensors.emplace_back(
        name,
        is_kept_as_codes(weight)
            ? values_of_codes(weight, buffers[name + "_codes"], buffers[name + "_scales"]).cpu()
            : weight.detach());
  }
  for (const auto& buffer : buffers) {
    // Counts of tokens are of one step only; the bias is part of what the model learned.
    if (buffer.key().ends_with(".expert_bias")) tensors.emplace_back(buffer.key(), buffer.value());
  }
  return tensors;
}

HeldAlong held_along(std::string_view name, const at::Tensor& tensor, const ModelPart& part) {
  if (holds_experts(name, tensor)) {
    const int64_t parts = part.experts.count == 0 ? 1 : part.experts.count / tensor.size(0);
    return {0, part.experts.first, parts};
  }
  const TensorSplit split = tensor_split(name);
  if (split == TensorSplit::NONE || part.tensor_size == 1) return {};
  const int64_t axis = split == TensorSplit::COLUMN_PARALLEL ? 0 : 1;
  return {axis, part.tensor_rank * tensor.size(axis), part.tensor_size};
}

TensorPiece piece_of(std::string name, int64_t first_row, const at::Tensor& tensor,
                     int64_t first_column) {
  std::vector<int64_t> offsets(static_cast<size_t>(tensor.dim()));
  if (!offsets.empty()) offsets[0] = first_row;
  if (offsets.size() > 1) offsets[1] = first_column;
  return {std::move(name), std::move(offsets), tensor};
}

namespace {

// Where a piece lies in its tensor. @throws unless it is there, in the dtype of `piece.data`.
Box box_of(const PieceReader& files, const TensorPiece& piece) {
  const std::vector<int64_t> whole = sizes_of(files, piece.name, piece.data);
  if (whole.empty()) return {};
  bool fits = true;
  for (size_t d = 0; d < whole.size(); ++d) {
    const int64_t end = piece.offsets[d] + piece.data.size(static_cast<int64_t>(d));
    fits = fits && (d < 2 ? end <= whole[d] : end == whole[d]);
  }
  MOE8_CHECK(fits, kNamedTensors, files.where(), "tensor '", piece.name, "': expected ",
             piece.data.sizes(), " from ", at::IntArrayRef(piece.offsets),
             " on, as in this run's model, got ", at::IntArrayRef(whole));
  return {piece.offsets, piece.data.sizes().vec()};
}

// All of a tensor. @throws unless it has the shape and dtype of `like`.
Box box_like(const PieceReader& files, const std::string& name, const at::Tensor& like) {
  const std::vector<int64_t> sizes = sizes_of(files, name, like);
  MOE8_CHECK(at::IntArrayRef(sizes) == like.sizes(), kNamedTensors, files.where(), "tensor '", name,
             "': expected ", like.scalar_type(), " ", like.sizes(),
             ", as in this run's model, got ", like.scalar_type(), " ", at::IntArrayRef(sizes));
  return {std::vector<int64_t>(sizes.size()), sizes};
}

}  // namespace

at::Tensor read_piece(const PieceReader& files, const TensorPiece& piece) {
  return files.read(piece.name, box_of(files, piece));
}

at::Tensor read_like(const PieceReader& files, const std::string& name, const at::Tensor& like) {
  return files.read(name, box_like(files, name, like));
}

void load_into(const NamedTensors& tensors, const PieceReader& files, const ModelPart& part) {
  const size_t count = files.names().size();
  MOE8_CHECK(count == tensors.size(), kNamedTensors, files.where(), "expected the ", tensors.size(),
             " tensors of this run's model, got ", count);
  std::vector<Box> boxes;
  for (const auto& [name, tensor] : tensors) {
    const HeldAlong held = held_along(name, tensor, part);
    const bool rows = held.axis == 0;
    boxes.push_back(held.parts == 1 ? box_like(files, name, tensor)
                                    : box_of(files, piece_of(name, rows ? held.first : 0, tensor,
                                                             rows ? 0 : held.first)));
    files.check(name, boxes.back());
  }
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    if (tensor.is_cpu() && tensor.is_contiguous()) {
      files.read_into(name, boxes[i], tensor);
    } else {
      tensor.copy_(files.read(name, boxes[i]));
    }
  }
}

}  // namespace moe8
