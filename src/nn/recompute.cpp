// SPDX-License-Identifier: BSD-3-Clause
#include "nn/recompute.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

#include "autograd/function_parts.h"
#include "gemm/observer.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOnce =
    "moe8: a recomputed part of a model cannot be differentiated twice (create_graph=true)";

thread_local bool recomputing = false;

// Its products were shown to observers when they were computed for the first time.
class Recomputing {
 public:
  Recomputing() : before_(std::exchange(recomputing, true)) {}
  ~Recomputing() { recomputing = before_; }
  Recomputing(const Recomputing&) = delete;
  Recomputing& operator=(const Recomputing&) = delete;

 private:
  bool before_;
  UnobservedProducts unobserved_;
};

struct Part : torch::CustomClassHolder {
  explicit Part(RecomputedPart f) : compute(std::move(f)) {}
  RecomputedPart compute;
};

struct RecomputeInBackward : torch::autograd::Function<RecomputeInBackward> {
  // The last of the tensors wants a gradient, so that backward comes here when no input does.
  static at::Tensor forward(AutogradContext* ctx, const at::TensorList& tensors,
                            const c10::intrusive_ptr<Part>& part) {
    const at::TensorList inputs = tensors.slice(0, tensors.size() - 1);
    ctx->save_for_backward(inputs.vec());
    ctx->saved_data["part"] = c10::IValue::make_capsule(part);
    return part->compute(inputs);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list inputs = ctx->get_saved_variables();
    variable_list result(inputs.size() + 2);
    if (!grads[0].defined()) return result;
    const auto part = c10::static_intrusive_pointer_cast<Part>(ctx->saved_data["part"].toCapsule());
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = inputs[i].detach();
      inputs[i].requires_grad_(ctx->needs_input_grad(i));
    }
    at::Tensor out;
    {
      const at::AutoGradMode with_graph(true);
      const Recomputing again;
      out = part->compute(inputs);
    }
    torch::autograd::backward({out}, {grads[0]});
    for (size_t i = 0; i < inputs.size(); ++i) result[i] = inputs[i].grad();
    if (at::GradMode::is_enabled()) forbid_double_backward(result, kOnce);
    return result;
  }
};

}  // namespace

at::Tensor recomputed_in_backward(RecomputedPart part, at::TensorList inputs) {
  if (!at::GradMode::is_enabled()) return part(inputs);
  variable_list tensors = inputs.vec();
  tensors.push_back(at::empty({0}, inputs[0].options()).requires_grad_());
  return RecomputeInBackward::apply(at::TensorList(tensors),
                                    c10::make_intrusive<Part>(std::move(part)));
}

bool is_recomputing() {
  return recomputing;
}

}  // namespace moe8
