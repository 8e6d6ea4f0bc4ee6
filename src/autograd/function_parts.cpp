// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/function_parts.h"

#include <torch/csrc/autograd/functions/basic_ops.h>

#include <memory>
#include <utility>

#include "weights/tags.h"
#include "weights/usage.h"

namespace moe8 {

using torch::autograd::variable_list;

FormKey left_key(const GemmProblem& problem) {
  return problem.left_key(choose_gemm_kernel(problem).encoding);
}

FormKey right_key(const GemmProblem& problem) {
  return problem.right_key(choose_gemm_kernel(problem).encoding);
}

void forbid_double_backward(variable_list& grads, const std::string& message) {
  auto error =
      std::make_shared<torch::autograd::DelayedError>(message, static_cast<int64_t>(grads.size()));
  variable_list inputs;
  for (const at::Tensor& grad : grads) {
    inputs.push_back(grad.defined() ? grad.detach().set_requires_grad(true) : at::Tensor());
  }
  grads = (*error)(std::move(inputs));
}

void note_use(const at::Tensor& W) {
  const std::optional<Tagged> tagged = find_tag(W);
  if (!tagged) return;
  for (const uint64_t id : tagged->ids) note_low_precision(id);
}

}  // namespace moe8
