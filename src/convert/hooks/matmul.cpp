// SPDX-License-Identifier: BSD-3-Clause
#include "convert/hooks/matmul.h"

#include <torch/csrc/autograd/function.h>
#include <torch/torch.h>

#include <algorithm>

#include "autograd/training_formats.h"
#include "base/check.h"
#include "convert/hooks/layers.h"
#include "moe8/linear.h"
#include "ops/products.h"
#include "quantize/check_input.h"
#include "weights/tags.h"
#include "weights/usage.h"

namespace moe8::hooks {
namespace {

using at::Tensor;

constexpr const char* kNotStrided =
    "its other operand is not strided; pass a dense tensor (to_dense())";
constexpr const char* kMixedContraction =
    "it contracts over more than the rows of one weight's matrices (over experts, over axes "
    "flattened into one, or over weights put side by side); multiply weight by weight, or join "
    "them along the axis of outputs";
constexpr const char* kSingleRows =
    "it uses every row of the weight's matrix as a matrix of its own; multiply by the whole matrix";
constexpr const char* kGroupedShape =
    "only 2-D activations with offs, or 3-D ones without, and 3-D weights have low precision";

// Products in the backward of LibTorch's own nodes (MmBackward0) belong to a forward that ran in
// high precision, with a weight that it saved. Nodes of user-written functions may run forwards of
// their own (activation checkpointing), which are converted.
bool in_backward_of_libtorch() {
  const auto node = torch::autograd::get_current_node();
  return node && node->is_traceable();
}

// A product is seen as x times weight: [..., M, K] with [..., K, N]. Vectors are matrices of one
// row or column here, and products with the weight on the left are transposed.
struct Product {
  Tensor x;
  Tensor weight;
  bool is_transposed;
};

Tensor as_right(const Tensor& t) {
  return t.dim() == 1 ? t.unsqueeze(1) : t;
}
Tensor as_left(const Tensor& t) {
  return t.dim() == 1 ? t.unsqueeze(0) : t;
}

Product with_weight_on_the_right(const Tensor& left, const Tensor& right) {
  return {as_left(left), as_right(right), false};
}
Product with_weight_on_the_left(const Tensor& left, const Tensor& right) {
  return {as_right(right).mT(), as_left(left).mT(), true};
}

// Of the weight as the caller passed it: the axis that is contracted.
int64_t contracted_axis(const Tensor& weight, bool is_left) {
  return is_left ? weight.dim() - 1 : std::max<int64_t>(weight.dim() - 2, 0);
}

// Why a product that contracts `axis` of the weight has no meaning in low precision; null: it has.
const char* why_high_precision(const Tensor& x, const Tensor& weight, const Tagged& tagged,
                               int64_t axis) {
  if (x.layout() != at::kStrided || weight.layout() != at::kStrided) return kNotStrided;
  if (weight.size(axis) > 1 && !tagged.axes[axis]) return kMixedContraction;
  for (int64_t batch = 0; batch < weight.dim() - 2; ++batch) {
    const bool is_repeated = weight.size(batch) <= 1 || weight.stride(batch) == 0;
    if (!is_repeated && tagged.axes[batch]) return kSingleRows;
  }
  return nullptr;
}

void note_high(const char* op, const char* why, c10::ArrayRef<uint64_t> ids) {
  for (const uint64_t id : ids) note_high_precision(id, op, why);
}

// LibTorch refuses operands of two dtypes, which moe8's functions multiply: code that runs with a
// conversion must run without it. Such a call goes on to LibTorch, whose error it gets.
bool is_refused(const Tensor& x, const Tensor& weight) {
  return x.scalar_type() != weight.scalar_type();
}

// False for what LibTorch refuses, in its own words.
bool fits(const Product& p) {
  if (p.x.device() != p.weight.device() || is_refused(p.x, p.weight)) {
    return false;
  }
  if (p.x.size(-1) != p.weight.size(-2)) return false;
  for (int64_t axis = -3; axis >= -std::min(p.x.dim(), p.weight.dim()); --axis) {
    const int64_t in_x = p.x.size(axis), in_weight = p.weight.size(axis);
    if (in_x != in_weight && in_x != 1 && in_weight != 1) return false;
  }
  return true;
}

// An expert without tokens: LibTorch makes the result, of no values or of zeros, which are the same
// in every precision.
bool is_empty(const Product& p) {
  return p.x.numel() == 0 || p.weight.numel() == 0;
}

void note_empty(c10::ArrayRef<uint64_t> ids) {
  for (const uint64_t id : ids) note_low_precision(id);
}

// A Linear's own product has the errors of the public function, also for operands that do not fit.
bool is_linear_layer(const Product& p, const Config& config) {
  return !p.is_transposed && p.weight.dim() == 2 && !is_grouped(config);
}

Tensor compute(const char* op, const Product& p, const Config& config, at::ScalarType out_dtype) {
  const InsideProduct inside;
  check_dtype(op, "x", p.x);
  check_dtype(op, "weight", p.weight);
  check_out_dtype(op, "out_dtype", out_dtype);
  return p.weight.dim() == 2 ? linear_product(p.x, p.weight.t(), config, out_dtype)
                             : matmul_product(p.x, p.weight, config, out_dtype);
}

// To the shape and memory that LibTorch's result has.
Tensor as_result(Tensor y, const Product& p, const Tensor& left, const Tensor& right) {
  if (p.is_transposed) y = y.mT().contiguous();
  if (right.dim() == 1) y = y.squeeze(-1);
  if (left.dim() == 1) y = y.squeeze(right.dim() == 1 ? -1 : -2);
  return y;
}

std::optional<Tensor> try_weight(const char* op, const Tensor& left, const Tensor& right,
                                 bool is_left, const Tagged& tagged,
                                 std::optional<at::ScalarType> out_dtype) {
  if (in_backward_of_libtorch()) return std::nullopt;
  const Tensor& weight = is_left ? left : right;
  const Tensor& x = is_left ? right : left;
  if (is_refused(x, weight)) return std::nullopt;
  if (const char* why = why_high_precision(x, weight, tagged, contracted_axis(weight, is_left))) {
    note_high(op, why, tagged.ids);
    return std::nullopt;
  }
  const Product p =
      is_left ? with_weight_on_the_left(left, right) : with_weight_on_the_right(left, right);
  const at::ScalarType dtype = out_dtype.value_or(p.x.scalar_type());
  if (is_linear_layer(p, *tagged.config) && dtype == p.x.scalar_type() && right.dim() == 2) {
    const InsideProduct inside;
    return quantize_then_linear(left, p.weight.t(), std::nullopt, *tagged.config);
  }
  if (!fits(p)) return std::nullopt;
  if (is_empty(p)) {
    note_empty(tagged.ids);
    return std::nullopt;
  }
  return as_result(compute(op, p, *tagged.config, dtype), p, left, right);
}

void note_lost(const char* op, const Tensor& operand) {
  const auto lost = find_lost(operand);
  if (lost && !in_backward_of_libtorch()) note_high(op, lost->why, lost->ids);
}

}  // namespace

std::optional<Tensor> try_matmul(const char* op, const Tensor& left, const Tensor& right,
                                 std::optional<at::ScalarType> out_dtype) {
  if (const auto tagged = find_tag(right)) {
    return try_weight(op, left, right, /*is_left=*/false, *tagged, out_dtype);
  }
  // Rows looked up in a weight are not taken for a weight here: they may be embeddings.
  if (const auto tagged = find_tag(left); tagged && !tagged->is_lookup) {
    return try_weight(op, left, right, /*is_left=*/true, *tagged, out_dtype);
  }
  note_lost(op, left);
  note_lost(op, right);
  return std::nullopt;
}

std::optional<Tensor> try_linear(const Tensor& x, const Tensor& weight,
                                 const std::optional<Tensor>& bias) {
  if (x.dim() == 0 || weight.dim() != 2) return std::nullopt;
  // Of the weight itself: in InferenceMode nobody knows whose view a view made here is.
  std::optional<Tagged> tagged = find_tag(weight);
  if (!tagged) return std::nullopt;
  const bool has_bias = bias && bias->defined();
  if (has_bias && is_refused(x, *bias)) return std::nullopt;
  const bool outputs = tagged->axes[0], inputs = tagged->axes[1];
  tagged->axes.set(0, inputs).set(1, outputs);
  const std::optional<Tensor> y =
      try_weight("linear", x, weight.t(), /*is_left=*/false, *tagged, std::nullopt);
  if (!y || !has_bias) return y;
  const Tensor summand = bias->to(y->scalar_type());
  return at::add(*y, summand.dim() == 1 ? summand : summand.expand_as(*y));
}

std::optional<Tensor> try_grouped_mm(const Tensor& left, const Tensor& right,
                                     const std::optional<Tensor>& offs,
                                     const std::optional<Tensor>& bias,
                                     std::optional<at::ScalarType> out_dtype) {
  constexpr const char* kOp = "_grouped_mm";
  std::optional<Tagged> tagged = find_tag(right);
  const bool is_left = !tagged;
  if (is_left) tagged = find_tag(left);
  if (!tagged) {
    note_lost(kOp, left);
    note_lost(kOp, right);
    return std::nullopt;
  }
  if (in_backward_of_libtorch()) return std::nullopt;
  const Tensor& weight = is_left ? left : right;
  const Tensor& x = is_left ? right : left;
  // Two dtypes are no error here: results are of the config's out_dtype, and the next experts take
  // them whatever the dtype of their weights.
  const bool has_offs = offs && offs->defined();
  const bool has_bias = bias && bias->defined();
  if (has_bias && is_left) return std::nullopt;  // no axis of outputs to add it along
  const bool has_shape = weight.dim() == 3 && x.dim() == (has_offs ? 2 : 3);
  const char* why = kGroupedShape;
  if (has_shape) why = why_high_precision(x, weight, *tagged, contracted_axis(weight, is_left));
  if (why) {
    note_high(kOp, why, tagged->ids);
    return std::nullopt;
  }
  const Product p =
      is_left ? with_weight_on_the_left(left, right) : with_weight_on_the_right(left, right);
  if (!has_offs && !fits(p)) return std::nullopt;
  if (!has_offs && is_empty(p)) {
    note_empty(tagged->ids);
    return std::nullopt;
  }
  const Config& config = *tagged->config;
  // What the call asks for comes before the config.
  const at::ScalarType dtype = out_dtype.value_or(out_dtype_of(config, p.x.scalar_type()));
  check_out_dtype(kOp, "out_dtype", dtype);
  const InsideProduct inside;
  if (has_offs) {
    const Tensor y =
        grouped_product(kOp, p.x, p.weight, *offs, config, dtype, has_bias ? bias : std::nullopt);
    return p.is_transposed ? y.mT().contiguous() : y;
  }
  const Tensor y = compute(kOp, p, config, dtype);
  if (has_bias) return at::add(y, bias->to(dtype).unsqueeze(1));
  return p.is_transposed ? y.mT().contiguous() : y;
}

void note_without_meaning(const char* op, const char* why, const Tensor& operand) {
  if (in_backward_of_libtorch()) return;
  if (const auto tagged = find_tag(operand)) note_high(op, why, tagged->ids);
  note_lost(op, operand);
}

}  // namespace moe8::hooks
