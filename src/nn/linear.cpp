// SPDX-License-Identifier: BSD-3-Clause
#include "nn/linear.h"

#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "device/allocate.h"
#include "gemm/torch_gemm.h"
#include "nn/frozen_codes.h"
#include "nn/lora.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor rows_in_float32(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)}).to(at::kFloat);
}

// In memory that the next product gets again.
at::Tensor weight_in_float32(const at::Tensor& weight) {
  return allocate_result(weight.sizes(), at::kFloat, weight).copy_(weight);
}

// The operands are kept in bf16; float32 copies live for one product.
struct LinearInFloat32 : torch::autograd::Function<LinearInFloat32> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["has_bias"] = bias.has_value();
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = weight.size(0);
    at::Tensor out = at::mm(rows_in_float32(x), weight_in_float32(weight).t());
    if (bias) out.add_(*bias);
    return out.to(x.scalar_type()).view(sizes);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor grad = rows_in_float32(grads[0]);
    variable_list result(3);
    if (ctx->needs_input_grad(0)) {
      result[0] = at::mm(grad, weight_in_float32(weight)).to(x.scalar_type()).view(x.sizes());
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = at::mm(grad.t(), rows_in_float32(x)).to(weight.scalar_type());
    }
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    if (has_bias && ctx->needs_input_grad(2)) result[2] = grad.sum(0).to(weight.scalar_type());
    return result;
  }
};

}  // namespace

torch::Tensor linear(const torch::Tensor& x, torch::nn::Linear& module) {
  const torch::Tensor weight = weight_of(*module, module->weight, "weight");
  const bool in_float32 = x.is_cpu() && x.scalar_type() == at::kBFloat16 &&
                          weight.scalar_type() == at::kBFloat16 && !cpu_prefers_bf16() &&
                          !find_tag(weight);
  const auto bias = module->bias.defined() ? std::optional(module->bias) : std::nullopt;
  if (in_float32) return with_lora(LinearInFloat32::apply(x, weight, bias), x, module);
  const bool is_its_own = weight.is_same(module->weight);
  return with_lora(is_its_own ? module(x) : at::linear(x, weight, bias), x, module);
}

}  // namespace moe8
