// SPDX-License-Identifier: BSD-3-Clause
// The fused optimizers write weights without moving the version counters by which a change is seen
// (include/moe8/memory.h): for converted weights that is made up here.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/torch.h>

#include <vector>

#include "convert/hooks/hooks.h"
#include "convert/hooks/layers.h"

namespace moe8::hooks {
namespace {

using at::Tensor;

// All take the weights first.
constexpr const char* kFusedWrites[] = {
    "_fused_adam_", "_fused_adam_.tensor_lr", "_fused_adamw_",   "_fused_adamw_.tensor_lr",
    "_fused_sgd_",  "_fused_sgd_.tensor_lr",  "_fused_adagrad_", "_fused_adagrad_.tensor_lr"};

void count_fused_write(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                       torch::jit::Stack* stack) {
  const size_t first = stack->size() - op.schema().arguments().size();
  const std::vector<Tensor> written = (*stack)[first].toTensorVector();
  op.redispatchBoxed(AutogradLayer::rest(keys), stack);
  for (const Tensor& weight : written) {
    if (find_tag(weight) && !weight.is_inference()) weight.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

void add_writes(torch::Library& library) {
  for (const char* op : kFusedWrites) {
    library.impl(op, torch::CppFunction::makeFromBoxedFunction<&count_fused_write>());
  }
}

}  // namespace moe8::hooks
