// SPDX-License-Identifier: BSD-3-Clause
// The gate of a feed-forward.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "autograd/function_parts.h"
#include "base/check.h"
#include "moe8/model_ops.h"
#include "nn/model_kernels.h"

namespace moe8 {
namespace {

struct FeedForwardGate : torch::autograd::Function<FeedForwardGate> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& gate,
                            const at::Tensor& up) {
    ctx->save_for_backward({gate, up});
    return cuda_gate(gate, up);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    GateGradients made = cuda_gate_backward(saved[0], saved[1], grads[0]);
    torch::autograd::variable_list results{std::move(made.gate), std::move(made.up)};
    if (at::GradMode::is_enabled()) {
      forbid_double_backward(results,
                             "moe8: swiglu cannot be differentiated twice (create_graph=true).");
    }
    return results;
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  MOE8_CHECK(gate.is_floating_point() && gate.sizes() == up.sizes() &&
                 gate.scalar_type() == up.scalar_type() && gate.device() == up.device(),
             "swiglu", "up", "expected gate's floating dtype, shape and device (",
             gate.scalar_type(), " ", gate.sizes(), " on ", gate.device(), "), got ",
             up.scalar_type(), " ", up.sizes(), " on ", up.device());
  if (model_kernels_take({gate, up})) return FeedForwardGate::apply(gate, up);
  return at::silu(gate) * up;
}

}  // namespace moe8
