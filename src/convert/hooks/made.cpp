// SPDX-License-Identifier: BSD-3-Clause
// Tensors made of converted weights by moving elements alone are converted weights: copies (clone,
// autocast, Module::to), cat, stack and chosen experts. Views need no hook: they lead to their
// base. A copy's conversion outlives set_data as an original's does.
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/_unsafe_view_native.h>
#include <ATen/ops/clone_native.h>
#include <torch/torch.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "convert/hooks/hooks.h"
#include "convert/hooks/layers.h"
#include "weights/axes.h"
#include "weights/tags.h"

namespace moe8::hooks {
namespace {

using at::Tensor;

// ---- cat, stack -------------------------------------------------------------------
constexpr const char* kJoinedWithOthers =
    "its weight was joined (cat, stack) with a tensor that is not converted, or by another config; "
    "convert all of them by one config";

// What `parts`, of equal rank, are when put together; nothing when no converted weight is among
// them. `axes` are those of the parts.
std::optional<MadeOf> joined(const std::vector<Tensor>& parts) {
  MadeOf of;
  bool is_uniform = true;
  const auto count = [&](const Tagged& part) {
    if (!of.config) of.config = *part.config;
    is_uniform &= *of.config == *part.config;
    of.axes = of.axes ? *of.axes & part.axes : part.axes;
    of.is_lookup |= part.is_lookup;
    for (const uint64_t id : part.ids) {
      if (std::find(of.ids.begin(), of.ids.end(), id) == of.ids.end()) of.ids.push_back(id);
    }
  };
  for (const Tensor& part : parts) {
    if (const auto tagged = find_tag(part)) {
      count(*tagged);
    } else {
      is_uniform = false;
    }
  }
  if (of.ids.empty()) return std::nullopt;
  if (!is_uniform) return MadeOf{.ids = of.ids, .why_lost = kJoinedWithOthers};
  return of;
}

// Vectors are no weights: flattened parameters, say, which nobody multiplies by.
bool may_be_weight(const Tensor& made) {
  return made.layout() == at::kStrided && made.dim() >= 2;
}

void mark_cat(const Tensor& result, const at::ITensorListRef& tensors, int64_t dim) {
  if (!may_be_weight(result)) return;
  std::vector<Tensor> parts;
  for (const Tensor& tensor : tensors) {
    if (tensor.numel() > 0) parts.push_back(tensor);
  }
  std::optional<MadeOf> of = joined(parts);
  if (!of) return;
  if (of->axes && parts.size() > 1) of->axes->reset(at::maybe_wrap_dim(dim, result.dim()));
  tag_made(result, *std::move(of));
}

// Axes of a tensor that has `count` new ones at `dim`.
AxisSet with_new_axes(AxisSet axes, int64_t dim, int64_t count) {
  const AxisSet before = AxisSet().flip() >> (axes.size() - static_cast<size_t>(dim));
  return (axes & before) | ((axes & ~before) << static_cast<size_t>(count));
}

void mark_stack(const Tensor& result, at::TensorList tensors, int64_t dim) {
  if (!may_be_weight(result)) return;
  std::optional<MadeOf> of = joined(tensors.vec());
  if (!of) return;
  if (of->axes) of->axes = with_new_axes(*of->axes, at::maybe_wrap_dim(dim, result.dim()), 1);
  tag_made(result, *std::move(of));
}

// ---- chosen experts or rows -------------------------------------------------------
// `axes`: those of `source`, seen in the result.
void mark_chosen(const Tensor& result, const Tagged& source, int64_t dim, AxisSet axes) {
  if (!may_be_weight(result)) return;
  MadeOf of = made_of(source, axes);
  of.is_lookup |= source.axes[dim];
  tag_made(result, std::move(of));
}

void mark_index_select(const Tensor& result, const Tensor& self, int64_t dim, const Tensor&) {
  const auto source = self.dim() > 0 ? find_tag(self) : std::nullopt;
  if (source) mark_chosen(result, *source, at::maybe_wrap_dim(dim, self.dim()), source->axes);
}

// weight.index({..., rows, ...}) with one index; with several it picks single elements.
void mark_index(const Tensor& result, const Tensor& self,
                const c10::List<std::optional<Tensor>>& indices) {
  const auto source = find_tag(self);
  if (!source) return;
  std::optional<int64_t> dim;
  for (size_t i = 0; i < indices.size(); ++i) {
    const std::optional<Tensor> index = indices.get(i);
    if (!index || !index->defined()) continue;
    if (dim) return;
    dim = static_cast<int64_t>(i);
  }
  if (!dim) return;
  const Tensor index = *indices.get(*dim);
  const bool is_mask = index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
  if (is_mask && index.dim() != 1) return;
  if (index.dim() == 0) return;
  AxisSet axes = source->axes;
  if (index.dim() > 1) {
    axes.reset(*dim);
    axes = with_new_axes(axes, *dim, index.dim() - 1);
  }
  mark_chosen(result, *source, *dim, axes);
}

// ---- set_data ---------------------------------------------------------------------
// set_data asks this of both tensors before it replaces `self`.
std::optional<bool> note_set_data(const Tensor& self, const Tensor&) {
  keep_tag(self);
  return std::nullopt;
}

template <typename Layer>
void register_makers(torch::Library& library) {
  namespace op = at::_ops;  // NOLINT(misc-unused-alias-decls): a template uses it
  add_after<Layer, op::cat, mark_cat>(library);
  add_after<Layer, op::stack, mark_stack>(library);
  add_after<Layer, op::index_select, mark_index_select>(library);
  add_after<Layer, op::index_Tensor, mark_index>(library);
  add_before<Layer, op::_has_compatible_shallow_copy_type, note_set_data>(library);
}

// ---- copies -----------------------------------------------------------------------
// LibTorch's kernel for both backends is the one function at::native::OP, so it is called directly.
Tensor to_copy(const Tensor& self, std::optional<at::ScalarType> dtype,
               std::optional<at::Layout> layout, std::optional<at::Device> device,
               std::optional<bool> pin_memory, bool non_blocking,
               std::optional<at::MemoryFormat> memory_format) {
  const Tensor copy =
      at::native::_to_copy(self, dtype, layout, device, pin_memory, non_blocking, memory_format);
  if (any_tags()) tag_copy(self, copy);
  return copy;
}

Tensor clone(const Tensor& self, std::optional<at::MemoryFormat> memory_format) {
  const Tensor copy = at::native::clone(self, memory_format);
  if (any_tags()) tag_copy(self, copy);
  return copy;
}

// What reshape() makes of a copy: the same memory, and no view of it.
Tensor unsafe_view(const Tensor& self, at::IntArrayRef size) {
  const Tensor result = at::native::_unsafe_view(self, size);
  if (const auto source = find_tag(self)) {
    tag_made(result, made_of(*source, axes_of_view(self, source->axes, result)));
  }
  return result;
}

}  // namespace

void add_made(torch::Library& library, LayerKind layer) {
  layer == LayerKind::AUTOGRAD ? register_makers<AutogradLayer>(library)
                               : register_makers<InferenceLayer>(library);
}

void add_copies(torch::Library& library) {
  library.impl("_to_copy", TORCH_FN(to_copy));
  library.impl("clone", TORCH_FN(clone));
  library.impl("_unsafe_view", TORCH_FN(unsafe_view));
}

}  // namespace moe8::hooks
