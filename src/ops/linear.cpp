// SPDX-License-Identifier: BSD-3-Clause
// Linear layers: checks of the arguments, then src/autograd with one group.
#include "moe8/linear.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/add.h>

#include "autograd/low_precision_mm.h"
#include "base/check.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

// Of x as a matrix. (Not from numel(): that says nothing of rows without elements.)
int64_t rows_of(const at::Tensor& x) {
  int64_t rows = 1;
  for (const int64_t size : x.sizes().slice(0, x.dim() - 1)) rows *= size;
  return rows;
}

}  // namespace

at::Tensor quantize_then_linear(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias, const Config& config) {
  constexpr const char* kOp = "quantize_then_linear";
  MOE8_CHECK(!is_grouped(config), kOp, "config",
             "expected an MXLinearConfig or Float8LinearConfig, got ", to_string(config));
  validate(config);
  check_dtype(kOp, "x", x);
  check_dtype(kOp, "weight", weight);
  MOE8_CHECK(weight.dim() == 2, kOp, "weight", "expected [N, K], got ", describe(weight));
  const int64_t n = weight.size(0);
  const int64_t k = weight.size(1);
  MOE8_CHECK(x.dim() >= 1 && x.size(-1) == k, kOp, "x", "expected [..., ", k,
             "] to fit a weight of ", weight.sizes(), ", got ", describe(x));
  MOE8_CHECK(weight.device() == x.device(), kOp, "weight", "expected on ", x.device(),
             " as x is, got ", describe(weight));
  if (bias) {
    check_dense(kOp, "bias", *bias);
    MOE8_CHECK(bias->dim() == 1 && bias->size(0) == n && bias->device() == x.device() &&
                   at::isFloatingType(bias->scalar_type()),
               kOp, "bias", "expected floating-point [", n, "] on ", x.device(), ", got ",
               describe(*bias));
  }

  // A matrix as it is: views cost nodes of the graph, which a small layer feels.
  const at::Tensor y =
      low_precision_mm(x.dim() == 2 ? x : x.reshape({rows_of(x), k}), weight.unsqueeze(0),
                       std::nullopt, training_formats(config), x.scalar_type());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = n;
  // As LibTorch's matmul: not a view, so that `y += bias` by the caller costs no extra graph node.
  const at::Tensor shaped = x.dim() == 2 ? y : at::_unsafe_view(y, sizes);
  return bias ? at::add(shaped, bias->to(shaped.scalar_type())) : shaped;
}

}  // namespace moe8
