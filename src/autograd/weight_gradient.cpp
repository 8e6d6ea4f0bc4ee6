// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/weight_gradient.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/graph_task.h>

#include <mutex>
#include <utility>

#include "weights/tags.h"
#include "weights/usage.h"

namespace moe8 {
namespace {

// LibTorch's accumulation ends in the weight's grad(), which is what the sum stands for.
bool backward_accumulates() {
  const auto* const wanted = torch::autograd::get_current_graph_task_exec_info();
  return !at::GradMode::is_enabled() && wanted && wanted->empty();
}

// What the hook of a converted weight would have seen (weights/backward_end.h).
void note_gradient_of(const at::Tensor& weight) {
  if (!any_unjudged()) return;
  const std::optional<Tagged> tagged = find_tag(weight);
  if (!tagged) return;
  note_gradient(tagged->id(), torch::autograd::get_current_graph_task_id());
}

}  // namespace

at::Tensor weight_gradient(GemmProblem problem, const std::weak_ptr<GradientSum>& sum) {
  const std::shared_ptr<GradientSum> to = sum.lock();
  if (!to || !backward_accumulates()) return low_precision_gemm(problem);
  const std::lock_guard lock(to->mutex);
  at::Tensor& grad = to->holder.mutable_grad();
  if (grad.defined() && grad.scalar_type() != at::kFloat) return low_precision_gemm(problem);
  add_low_precision_gemm(std::move(problem), grad);
  to->is_newer = true;
  note_gradient_of(to->weight);
  return {};
}

}  // namespace moe8
