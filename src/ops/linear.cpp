// SPDX-License-Identifier: BSD-3-Clause
// Linear layers: checks of the arguments, then one group of src/ops/products.h.
#include "moe8/linear.h"

#include <ATen/ops/add.h>

#include "base/check.h"
#include "ops/products.h"
#include "quantize/check_input.h"

namespace moe8 {

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

  const at::Tensor y = linear_product(x, weight, config, x.scalar_type());
  return bias ? at::add(y, bias->to(y.scalar_type())) : y;
}

}  // namespace moe8
