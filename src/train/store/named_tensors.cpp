// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/named_tensors.h"

#include <torch/nn/module.h>

#include "base/check.h"

namespace moe8 {
namespace {

constexpr const char* kNamedTensors = "checkpoint";

std::vector<int64_t> sizes_of(const PieceReader& files, const std::string& name,
                              const at::Tensor& like) {
  const std::vector<int64_t> sizes = files.sizes(name);
  const std::string dtype = files.dtype(name);
  MOE8_CHECK(dtype == PieceReader::dtype_name(like.scalar_type()) &&
                 static_cast<int64_t>(sizes.size()) == like.dim(),
             kNamedTensors, files.where(), "tensor '", name, "': expected ", like.scalar_type(),
             " ", like.sizes(), ", as in this run's model, got ", PieceReader::dtype_of(dtype), " ",
             at::IntArrayRef(sizes));
  return sizes;
}

}  // namespace

bool holds_experts(std::string_view name, const at::Tensor& tensor) {
  return tensor.dim() == 3 && name.find(".experts.") != std::string_view::npos;
}

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

TensorPiece piece_of(std::string name, int64_t first_row, const at::Tensor& tensor) {
  std::vector<int64_t> offsets(static_cast<size_t>(tensor.dim()));
  if (!offsets.empty()) offsets[0] = first_row;
  return {std::move(name), std::move(offsets), tensor};
}

at::Tensor read_rows(const PieceReader& files, const std::string& name, int64_t first_row,
                     const at::Tensor& like) {
  std::vector<int64_t> sizes = sizes_of(files, name, like);
  if (sizes.empty()) return files.read(name);
  const int64_t rows = sizes[0];
  sizes[0] = like.size(0);
  MOE8_CHECK(at::IntArrayRef(sizes) == like.sizes() && first_row + like.size(0) <= rows,
             kNamedTensors, files.where(), "tensor '", name, "': expected ", like.sizes(),
             " from row ", first_row, " on, as in this run's model, got ", rows, " rows, ",
             at::IntArrayRef(sizes));
  return files.read(name, {piece_of(name, first_row, like).offsets, sizes});
}

at::Tensor read_like(const PieceReader& files, const std::string& name, const at::Tensor& like) {
  const std::vector<int64_t> sizes = sizes_of(files, name, like);
  MOE8_CHECK(at::IntArrayRef(sizes) == like.sizes(), kNamedTensors, files.where(), "tensor '", name,
             "': expected ", like.scalar_type(), " ", like.sizes(),
             ", as in this run's model, got ", like.scalar_type(), " ", at::IntArrayRef(sizes));
  return files.read(name);
}

void load_into(const NamedTensors& tensors, const PieceReader& files, const ExpertPart& part) {
  const size_t count = files.names().size();
  MOE8_CHECK(count == tensors.size(), kNamedTensors, files.where(), "expected the ", tensors.size(),
             " tensors of this run's model, got ", count);
  std::vector<at::Tensor> values;
  for (const auto& [name, tensor] : tensors) {
    const bool some = part.count > 0 && holds_experts(name, tensor);
    values.push_back(some ? read_rows(files, name, part.first, tensor)
                          : read_like(files, name, tensor));
  }
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].second.copy_(values[i]);
}

}  // namespace moe8
