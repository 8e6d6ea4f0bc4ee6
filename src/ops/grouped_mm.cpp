// SPDX-License-Identifier: BSD-3-Clause
// Grouped products: checks of the arguments, then src/autograd.
#include "moe8/grouped_mm.h"

#include <variant>

#include "autograd/low_precision_mm.h"
#include "base/check.h"
#include "base/overloaded.h"
#include "base/plain_text.h"
#include "ops/products.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

using Bias = std::optional<at::Tensor>;

/// Everything but dtypes of A, which may be codes.
void check_operands(const char* op, at::IntArrayRef a_sizes, const at::Device& device,
                    const at::Tensor& B_t, const at::Tensor& offs, const Bias& bias) {
  MOE8_CHECK(a_sizes.size() == 2, op, "A", "expected [M, K], got ", a_sizes);
  check_dtype(op, "B_t", B_t);
  MOE8_CHECK(B_t.dim() == 3, op, "B_t", "expected [E, K, N], got ", describe(B_t));
  MOE8_CHECK(B_t.device() == device, op, "B_t", "expected on ", device, " as A is, got ",
             describe(B_t));
  MOE8_CHECK(B_t.size(1) == a_sizes[1], op, "B_t", "expected [E, ", a_sizes[1], ", N] to fit A of ",
             a_sizes, ", got ", B_t.sizes(),
             ". Weights (E, N, K) are passed as W.transpose(-2, -1)");
  check_offs(op, offs, B_t.size(0), a_sizes[0], device);
  if (!bias) return;
  check_dense(op, "bias", *bias);
  MOE8_CHECK(bias->dim() == 2 && bias->size(0) == B_t.size(0) && bias->size(1) == B_t.size(2) &&
                 bias->device() == device && at::isFloatingType(bias->scalar_type()),
             op, "bias", "expected floating-point [", B_t.size(0), ", ", B_t.size(2),
             "], a row for each expert, on ", device, ", got ", describe(*bias));
}

[[noreturn]] void refuse_linear_config(const Config& config) {
  fail("quantize_then_scaled_grouped_mm", "config",
       concat("expected an FP8GroupedMMConfig or MXFP8GroupedMMConfig, got ", to_string(config)));
}

}  // namespace

at::Tensor grouped_product(const char* op, const at::Tensor& A, const at::Tensor& B_t,
                           const at::Tensor& offs, const Config& config, at::ScalarType out_dtype,
                           const std::optional<at::Tensor>& bias) {
  validate(config);
  check_dtype(op, "A", A);
  check_operands(op, A.sizes(), A.device(), B_t, offs, bias);
  return low_precision_mm(A, B_t.transpose(1, 2), offs, training_formats(config), out_dtype, bias);
}

at::Tensor to_fp8_rowwise_then_scaled_grouped_mm(const at::Tensor& A, const at::Tensor& B_t,
                                                 const at::Tensor& offs, at::ScalarType out_dtype,
                                                 const std::optional<at::Tensor>& bias) {
  return grouped_product("to_fp8_rowwise_then_scaled_grouped_mm", A, B_t, offs,
                         FP8GroupedMMConfig{.out_dtype = out_dtype}, out_dtype, bias);
}

at::Tensor to_mxfp8_then_scaled_grouped_mm(const at::Tensor& A, const at::Tensor& B_t,
                                           const at::Tensor& offs,
                                           const MXFP8GroupedMMConfig& config,
                                           const std::optional<at::Tensor>& bias) {
  return grouped_product("to_mxfp8_then_scaled_grouped_mm", A, B_t, offs, config, config.out_dtype,
                         bias);
}

at::Tensor to_mxfp8_then_scaled_grouped_mm(const MXTensor& A, const at::Tensor& B_t,
                                           const at::Tensor& offs,
                                           const MXFP8GroupedMMConfig& config,
                                           const std::optional<at::Tensor>& bias) {
  constexpr const char* kOp = "to_mxfp8_then_scaled_grouped_mm";
  config.validate();
  check_mx_tensor(kOp, "A", A);
  MOE8_CHECK(
      config.wgrad_with_hp, kOp, "config.wgrad_with_hp",
      "expected true with quantized activations, got false. They have no blocks along tokens to "
      "compute grad_W from");
  MOE8_CHECK(A.elem == ElemDtype::E4M3 && A.shape.size() == 2 && A.axis == 1 && !A.offs, kOp, "A",
             "expected float8_e4m3fn of [M, K] with blocks along K, got ", to_string(A.elem),
             " of ", at::IntArrayRef(A.shape), " with blocks along axis ", A.axis,
             A.offs ? " in groups" : "");
  check_operands(kOp, A.shape, A.data.device(), B_t, offs, bias);
  // The values of A are what its codes stand for; quantizing them again would change nothing but
  // time.
  TrainingFormats formats = training_formats(config);
  formats.out.left = HighPrecision{};
  return low_precision_mm(dequantize(A), B_t.transpose(1, 2), offs, formats, config.out_dtype,
                          bias);
}

at::Tensor quantize_then_scaled_grouped_mm(const at::Tensor& A, const at::Tensor& B_t,
                                           const at::Tensor& offs, const Config& config,
                                           const std::optional<at::Tensor>& bias) {
  return std::visit(
      Overloaded{[&](const FP8GroupedMMConfig& c) {
                   return to_fp8_rowwise_then_scaled_grouped_mm(A, B_t, offs, c.out_dtype, bias);
                 },
                 [&](const MXFP8GroupedMMConfig& c) {
                   return to_mxfp8_then_scaled_grouped_mm(A, B_t, offs, c, bias);
                 },
                 [](const MXLinearConfig& c) -> at::Tensor { refuse_linear_config(c); },
                 [](const Float8LinearConfig& c) -> at::Tensor { refuse_linear_config(c); }},
      config);
}

}  // namespace moe8
