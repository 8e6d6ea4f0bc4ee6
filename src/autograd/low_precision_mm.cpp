// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/low_precision_mm.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/torch.h>

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What backward needs besides tensors.
struct Saved : torch::CustomClassHolder {
  TrainingFormats formats;
  at::ScalarType a_dtype{};
  at::ScalarType w_dtype{};
  std::optional<at::Tensor> offs;
  WeightId weight;
};

/// Below autograd and autocast: the products inside are ours, and must not be seen by the hooks
/// that brought us here (the saved weight is still a converted one).
struct PlainOps {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

at::Tensor run(const Saved& saved, Gemm gemm, const GemmFormats& formats, const at::Tensor& left,
               const at::Tensor& right, at::ScalarType out_dtype) {
  return low_precision_gemm({.gemm = gemm,
                             .left = left,
                             .right = right,
                             .offs = saved.offs,
                             .formats = formats,
                             .out_dtype = out_dtype,
                             .kernel_preference = saved.formats.kernel_preference,
                             .weight = saved.weight});
}

// Gradients that were asked for with create_graph get a node that refuses to be differentiated
// again; without it second-order terms would vanish silently.
void forbid_double_backward(variable_list& grads) {
  auto error = std::make_shared<torch::autograd::DelayedError>(
      "moe8: low-precision products cannot be differentiated twice (create_graph=true). "
      "Take the conversion back with dequantize_() for second derivatives.",
      static_cast<int64_t>(grads.size()));
  variable_list inputs;
  for (const at::Tensor& grad : grads) {
    inputs.push_back(grad.defined() ? grad.detach().set_requires_grad(true) : at::Tensor());
  }
  grads = (*error)(std::move(inputs));
}

struct LowPrecisionMM : torch::autograd::Function<LowPrecisionMM> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& A, const at::Tensor& W,
                            const c10::intrusive_ptr<Saved>& saved, at::ScalarType out_dtype) {
    const PlainOps guard;
    ctx->save_for_backward(
        {W.requires_grad() ? A : at::Tensor(), A.requires_grad() ? W : at::Tensor()});
    ctx->saved_data["saved"] = c10::IValue::make_capsule(saved);
    return run(*saved, Gemm::OUT, saved->formats.out, A, W, out_dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list tensors = ctx->get_saved_variables();
    const auto saved =
        c10::static_intrusive_pointer_cast<Saved>(ctx->saved_data["saved"].toCapsule());
    variable_list grads(2);  // A, W
    if (grad_outputs[0].defined()) {
      const PlainOps guard;
      const at::Tensor grad_out = grad_outputs[0].contiguous();  // y.sum() sends stride 0
      if (ctx->needs_input_grad(0)) {
        grads[0] = run(*saved, Gemm::GRAD_INPUT, saved->formats.grad_input, grad_out, tensors[1],
                       saved->a_dtype);
      }
      if (ctx->needs_input_grad(1)) {
        grads[1] = run(*saved, Gemm::GRAD_WEIGHT, saved->formats.grad_weight, grad_out, tensors[0],
                       saved->w_dtype);
      }
    }
    if (at::GradMode::is_enabled()) forbid_double_backward(grads);
    return {grads[0], grads[1], at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor low_precision_mm(const at::Tensor& A, const at::Tensor& W,
                            const std::optional<at::Tensor>& offs, const TrainingFormats& formats,
                            at::ScalarType out_dtype) {
  auto saved = c10::make_intrusive<Saved>();
  saved->formats = formats;
  saved->a_dtype = A.scalar_type();
  saved->w_dtype = W.scalar_type();
  saved->offs = offs;
  if (numerics_observed()) saved->weight = weight_id(W);
  return LowPrecisionMM::apply(A, W, saved, out_dtype);
}

}  // namespace moe8
