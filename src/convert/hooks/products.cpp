// SPDX-License-Identifier: BSD-3-Clause
// LibTorch's matrix products, each as matmul with what it adds to it: a summand, a result to write
// into, a dtype. nn::Linear calls addmm or matmul, seldom linear; linear and matmul are hooked all
// the same, because with a frozen weight they may become bmm on an expanded one. einsum, tensordot
// and multi_dot end in these operations by themselves.
#include <ATen/native/Resize.h>
#include <torch/torch.h>

#include <initializer_list>
#include <optional>

#include "base/check.h"
#include "convert/hooks/hooks.h"
#include "convert/hooks/layers.h"
#include "convert/hooks/matmul.h"

namespace moe8::hooks {
namespace {

using at::Scalar;
using at::ScalarType;
using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ---- what the operations have in common -----------------------------------------
// As matmul, for operations that take operands of certain ranks only.
MaybeTensor product(const char* op, const Tensor& left, int64_t left_rank, const Tensor& right,
                    int64_t right_rank, std::optional<ScalarType> out_dtype = {}) {
  if (left.dim() != left_rank || right.dim() != right_rank) return std::nullopt;
  // bmm broadcasts nothing.
  if (left_rank == 3 && left.size(0) != right.size(0)) return std::nullopt;
  return try_matmul(op, left, right, out_dtype);
}

MaybeTensor product_mm(const char* op, const Tensor& x, const Tensor& mat2,
                       std::optional<ScalarType> out_dtype = {}) {
  return product(op, x, 2, mat2, 2, out_dtype);
}
MaybeTensor product_bmm(const char* op, const Tensor& x, const Tensor& mat2,
                        std::optional<ScalarType> out_dtype = {}) {
  return product(op, x, 3, mat2, 3, out_dtype);
}

// beta * self + alpha * product, with self broadcast.
MaybeTensor sum(const char* op, const Tensor& self, const MaybeTensor& product, const Scalar& beta,
                const Scalar& alpha) {
  if (!product) return std::nullopt;
  const Tensor scaled = alpha.equal(1) ? *product : *product * alpha;
  if (beta.equal(0)) return scaled;  // LibTorch ignores self then, NaN included
  MOE8_CHECK(self.scalar_type() == product->scalar_type(), op, "self", "expected ",
             product->scalar_type(), " as the product, got ", self.scalar_type());
  const Tensor added = beta.equal(1) ? self : self * beta;
  // A bias as it is: a view costs a node of the graph, which a small layer feels.
  const bool is_bias = self.dim() == 1 && self.size(0) == product->size(-1);
  return scaled + (is_bias ? added : added.expand_as(*product));
}

// The same in place, or null for a self that LibTorch refuses.
Tensor* add_to(Tensor& self, const MaybeTensor& product, const Scalar& beta, const Scalar& alpha) {
  if (!product || self.sizes() != product->sizes() ||
      self.scalar_type() != product->scalar_type()) {
    return nullptr;
  }
  const Tensor scaled = alpha.equal(1) ? *product : *product * alpha;
  if (beta.equal(0)) {
    self.copy_(scaled);
  } else {
    if (!beta.equal(1)) self.mul_(beta);
    self.add_(scaled);
  }
  return &self;
}

// Writes what compute() returns, of out_dtype, into out. Null for what LibTorch refuses itself
// (another dtype, gradients) and for what is no product of ours.
template <typename Compute>
Tensor* into(Tensor& out, ScalarType out_dtype, std::initializer_list<Tensor> operands,
             Compute compute) {
  const auto wants_gradient = [](const Tensor& t) { return t.defined() && t.requires_grad(); };
  if (out.scalar_type() != out_dtype) return nullptr;
  if (at::GradMode::is_enabled()) {
    if (wants_gradient(out)) return nullptr;
    for (const Tensor& operand : operands) {
      if (wants_gradient(operand)) return nullptr;
    }
  }
  const MaybeTensor result = compute();
  if (!result || result->device() != out.device()) return nullptr;
  at::native::resize_output(out, result->sizes());
  out.copy_(*result);
  return &out;
}

// ---- mm, addmm --------------------------------------------------------------------
MaybeTensor mm(const Tensor& x, const Tensor& mat2) {
  return product_mm("mm", x, mat2);
}
MaybeTensor mm_dtype(const Tensor& x, const Tensor& mat2, ScalarType out_dtype) {
  return product_mm("mm", x, mat2, out_dtype);
}
Tensor* mm_dtype_out(const Tensor& x, const Tensor& mat2, ScalarType out_dtype, Tensor& out) {
  return into(out, out_dtype, {x, mat2}, [&] { return product_mm("mm", x, mat2, out_dtype); });
}
Tensor* mm_out(const Tensor& x, const Tensor& mat2, Tensor& out) {
  return mm_dtype_out(x, mat2, x.scalar_type(), out);
}

MaybeTensor addmm(const Tensor& self, const Tensor& x, const Tensor& mat2, const Scalar& beta,
                  const Scalar& alpha) {
  return sum("addmm", self, product_mm("addmm", x, mat2), beta, alpha);
}
MaybeTensor addmm_dtype(const Tensor& self, const Tensor& x, const Tensor& mat2,
                        ScalarType out_dtype, const Scalar& beta, const Scalar& alpha) {
  return sum("addmm", self, product_mm("addmm", x, mat2, out_dtype), beta, alpha);
}
Tensor* addmm_dtype_out(const Tensor& self, const Tensor& x, const Tensor& mat2,
                        ScalarType out_dtype, const Scalar& beta, const Scalar& alpha,
                        Tensor& out) {
  return into(out, out_dtype, {self, x, mat2},
              [&] { return addmm_dtype(self, x, mat2, out_dtype, beta, alpha); });
}
Tensor* addmm_out(const Tensor& self, const Tensor& x, const Tensor& mat2, const Scalar& beta,
                  const Scalar& alpha, Tensor& out) {
  return addmm_dtype_out(self, x, mat2, x.scalar_type(), beta, alpha, out);
}
Tensor* addmm_(Tensor& self, const Tensor& x, const Tensor& mat2, const Scalar& beta,
               const Scalar& alpha) {
  return add_to(self, product_mm("addmm_", x, mat2), beta, alpha);
}

// ---- bmm, baddbmm -----------------------------------------------------------------
MaybeTensor bmm(const Tensor& x, const Tensor& mat2) {
  return product_bmm("bmm", x, mat2);
}
MaybeTensor bmm_dtype(const Tensor& x, const Tensor& mat2, ScalarType out_dtype) {
  return product_bmm("bmm", x, mat2, out_dtype);
}
Tensor* bmm_dtype_out(const Tensor& x, const Tensor& mat2, ScalarType out_dtype, Tensor& out) {
  return into(out, out_dtype, {x, mat2}, [&] { return product_bmm("bmm", x, mat2, out_dtype); });
}
Tensor* bmm_out(const Tensor& x, const Tensor& mat2, Tensor& out) {
  return bmm_dtype_out(x, mat2, x.scalar_type(), out);
}

MaybeTensor baddbmm(const Tensor& self, const Tensor& x, const Tensor& mat2, const Scalar& beta,
                    const Scalar& alpha) {
  return sum("baddbmm", self, product_bmm("baddbmm", x, mat2), beta, alpha);
}
MaybeTensor baddbmm_dtype(const Tensor& self, const Tensor& x, const Tensor& mat2,
                          ScalarType out_dtype, const Scalar& beta, const Scalar& alpha) {
  return sum("baddbmm", self, product_bmm("baddbmm", x, mat2, out_dtype), beta, alpha);
}
Tensor* baddbmm_dtype_out(const Tensor& self, const Tensor& x, const Tensor& mat2,
                          ScalarType out_dtype, const Scalar& beta, const Scalar& alpha,
                          Tensor& out) {
  return into(out, out_dtype, {self, x, mat2},
              [&] { return baddbmm_dtype(self, x, mat2, out_dtype, beta, alpha); });
}
Tensor* baddbmm_out(const Tensor& self, const Tensor& x, const Tensor& mat2, const Scalar& beta,
                    const Scalar& alpha, Tensor& out) {
  return baddbmm_dtype_out(self, x, mat2, x.scalar_type(), beta, alpha, out);
}
Tensor* baddbmm_(Tensor& self, const Tensor& x, const Tensor& mat2, const Scalar& beta,
                 const Scalar& alpha) {
  return add_to(self, product_bmm("baddbmm_", x, mat2), beta, alpha);
}

// ---- mv, addmv --------------------------------------------------------------------
MaybeTensor mv(const Tensor& matrix, const Tensor& vector) {
  return product("mv", matrix, 2, vector, 1);
}
Tensor* mv_out(const Tensor& matrix, const Tensor& vector, Tensor& out) {
  return into(out, vector.scalar_type(), {matrix, vector},
              [&] { return hooks::mv(matrix, vector); });
}
MaybeTensor addmv(const Tensor& self, const Tensor& matrix, const Tensor& vector,
                  const Scalar& beta, const Scalar& alpha) {
  return sum("addmv", self, product("addmv", matrix, 2, vector, 1), beta, alpha);
}
Tensor* addmv_out(const Tensor& self, const Tensor& matrix, const Tensor& vector,
                  const Scalar& beta, const Scalar& alpha, Tensor& out) {
  return into(out, vector.scalar_type(), {self, matrix, vector},
              [&] { return hooks::addmv(self, matrix, vector, beta, alpha); });
}
Tensor* addmv_(Tensor& self, const Tensor& matrix, const Tensor& vector, const Scalar& beta,
               const Scalar& alpha) {
  return add_to(self, product("addmv_", matrix, 2, vector, 1), beta, alpha);
}

// ---- matmul, linear, _grouped_mm --------------------------------------------------
MaybeTensor matmul(const Tensor& x, const Tensor& other) {
  if (x.dim() == 0 || other.dim() == 0) return std::nullopt;
  return try_matmul("matmul", x, other);
}
Tensor* matmul_out(const Tensor& x, const Tensor& other, Tensor& out) {
  return into(out, x.scalar_type(), {x, other}, [&] { return hooks::matmul(x, other); });
}
MaybeTensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  return try_linear(x, weight, bias);
}
Tensor* linear_out(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, Tensor& out) {
  return into(out, x.scalar_type(), {x, weight, bias.value_or(Tensor())},
              [&] { return try_linear(x, weight, bias); });
}
MaybeTensor grouped_mm(const Tensor& A, const Tensor& B_t, const MaybeTensor& offs,
                       const MaybeTensor& bias, std::optional<ScalarType> out_dtype) {
  return try_grouped_mm(A, B_t, offs, bias, out_dtype);
}

// ---- products without a meaning in low precision ----------------------------------
constexpr const char* kOtherProduct =
    "only matrix products have low precision; leave the weight out of the conversion";

MaybeTensor bilinear(const Tensor&, const Tensor& weight, const Tensor&, at::IntArrayRef,
                     at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t) {
  note_without_meaning("bilinear", kOtherProduct, weight);
  return std::nullopt;
}
MaybeTensor convolution(const Tensor&, const Tensor& weight, const MaybeTensor&,
                        c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef, bool,
                        c10::SymIntArrayRef, const c10::SymInt&) {
  note_without_meaning("convolution", kOtherProduct, weight);
  return std::nullopt;
}
MaybeTensor addbmm(const Tensor&, const Tensor& x, const Tensor& mat2, const Scalar&,
                   const Scalar&) {
  constexpr const char* kWhy = "it contracts over experts; use baddbmm and sum over its batches";
  note_without_meaning("addbmm", kWhy, x);
  note_without_meaning("addbmm", kWhy, mat2);
  return std::nullopt;
}

template <typename Layer>
void register_products(torch::Library& library) {
  namespace op = at::_ops;  // NOLINT(misc-unused-alias-decls): a template uses it
  add_before<Layer, op::mm, mm>(library);
  add_before<Layer, op::mm_out, mm_out>(library);
  add_before<Layer, op::mm_dtype, mm_dtype>(library);
  add_before<Layer, op::mm_dtype_out, mm_dtype_out>(library);
  add_before<Layer, op::addmm, addmm>(library);
  add_before<Layer, op::addmm_, addmm_>(library);
  add_before<Layer, op::addmm_out, addmm_out>(library);
  add_before<Layer, op::addmm_dtype, addmm_dtype>(library);
  add_before<Layer, op::addmm_dtype_out, addmm_dtype_out>(library);
  add_before<Layer, op::bmm, bmm>(library);
  add_before<Layer, op::bmm_out, bmm_out>(library);
  add_before<Layer, op::bmm_dtype, bmm_dtype>(library);
  add_before<Layer, op::bmm_dtype_out, bmm_dtype_out>(library);
  add_before<Layer, op::baddbmm, baddbmm>(library);
  add_before<Layer, op::baddbmm_, baddbmm_>(library);
  add_before<Layer, op::baddbmm_out, baddbmm_out>(library);
  add_before<Layer, op::baddbmm_dtype, baddbmm_dtype>(library);
  add_before<Layer, op::baddbmm_dtype_out, baddbmm_dtype_out>(library);
  add_before<Layer, op::mv, mv>(library);
  add_before<Layer, op::mv_out, mv_out>(library);
  add_before<Layer, op::addmv, addmv>(library);
  add_before<Layer, op::addmv_, addmv_>(library);
  add_before<Layer, op::addmv_out, addmv_out>(library);
  add_before<Layer, op::matmul, matmul>(library);
  add_before<Layer, op::matmul_out, matmul_out>(library);
  add_before<Layer, op::linear, linear>(library);
  add_before<Layer, op::linear_out, linear_out>(library);
  add_before<Layer, op::_grouped_mm, grouped_mm>(library);
  add_before<Layer, op::_trilinear, bilinear>(library);
  add_before<Layer, op::convolution, convolution>(library);
  add_before<Layer, op::addbmm, addbmm>(library);
}

}  // namespace

void add_products(torch::Library& library, LayerKind layer) {
  layer == LayerKind::AUTOGRAD ? register_products<AutogradLayer>(library)
                               : register_products<InferenceLayer>(library);
}

}  // namespace moe8::hooks
