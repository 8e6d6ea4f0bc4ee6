// SPDX-License-Identifier: BSD-3-Clause
// RMSNorm, alone and of a sum. Where there are no kernels, LibTorch's: on a GPU its own fused one,
// on a CPU its composition.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/rms_norm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "autograd/function_parts.h"
#include "base/check.h"
#include "moe8/model_ops.h"
#include "nn/model_kernels.h"

namespace moe8 {
namespace {

// {normed}, or {x + y, normed}, or without y {x, normed}.
struct Norm : torch::autograd::Function<Norm> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const at::Tensor& x,
                                                const std::optional<at::Tensor>& y,
                                                const at::Tensor& weight, double eps,
                                                bool gives_sum) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["has_y"] = y.has_value();
    const NormResults made = cuda_rms_norm(x, y ? *y : at::Tensor(), weight, eps);
    const at::Tensor h = y ? made.sum : x;
    ctx->save_for_backward({h, weight, made.rstd});
    if (!gives_sum) return {made.normed};
    return {h, made.normed};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor grad_sum = grads.size() > 1 ? grads[0] : at::Tensor();
    const at::Tensor& grad = grads.back();
    torch::autograd::variable_list results(5);
    if (grad.defined()) {
      const auto saved = ctx->get_saved_variables();
      NormGradients made = cuda_rms_norm_backward(saved[0], saved[1], saved[2], grad, grad_sum);
      results[0] = std::move(made.x), results[2] = std::move(made.weight);
    } else {
      results[0] = grad_sum;
    }
    if (ctx->saved_data["has_y"].toBool()) results[1] = results[0];
    if (at::GradMode::is_enabled()) {
      forbid_double_backward(results,
                             "moe8: rms_norm cannot be differentiated twice (create_graph=true).");
    }
    return results;
  }
};

void check_norm(const at::Tensor& x, const at::Tensor& weight) {
  constexpr const char* kOp = "rms_norm";
  MOE8_CHECK(x.dim() > 0 && x.size(-1) > 0 && x.is_floating_point(), kOp, "x",
             "expected a floating [..., D] with D > 0, got ", x.scalar_type(), " ", x.sizes());
  MOE8_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1) &&
                 weight.scalar_type() == x.scalar_type() && weight.device() == x.device(),
             kOp, "weight", "expected ", x.scalar_type(), " [", x.size(-1), "] on ", x.device(),
             ", got ", weight.scalar_type(), " ", weight.sizes(), " on ", weight.device());
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_norm(x, weight);
  if (model_kernels_take({x, weight})) return Norm::apply(x, std::nullopt, weight, eps, false)[0];
  return at::rms_norm(x, weight.sizes(), weight, eps);
}

NormedSum add_rms_norm(const at::Tensor& x, const at::Tensor& y, const at::Tensor& weight,
                       double eps) {
  check_norm(x, weight);
  MOE8_CHECK(!y.defined() || (y.sizes() == x.sizes() && y.scalar_type() == x.scalar_type() &&
                              y.device() == x.device()),
             "add_rms_norm", "y", "expected ", x.scalar_type(), " ", x.sizes(), " on ", x.device(),
             " as x, got ", y.scalar_type(), " ", y.sizes(), " on ", y.device());
  if (model_kernels_take({x, y, weight})) {
    const auto added = y.defined() ? std::optional(y) : std::nullopt;
    auto made = Norm::apply(x, added, weight, eps, true);
    return {std::move(made[0]), std::move(made[1])};
  }
  const at::Tensor sum = y.defined() ? x + y : x;
  return {sum, at::rms_norm(sum, weight.sizes(), weight, eps)};
}

}  // namespace moe8
