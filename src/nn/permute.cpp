// SPDX-License-Identifier: BSD-3-Clause
// Permutation of token rows by expert, with gradients that are gathers too.
#include "nn/permute.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// out[i] = x[index[i] / copies] where index is a permutation of rows(x) * copies and inverse its
// inverse. Knowing the inverse makes the gradient a gather and a sum over neighbours.
struct GatherRows : torch::autograd::Function<GatherRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& index,
                            const at::Tensor& inverse, int64_t copies) {
    ctx->save_for_backward({inverse});
    ctx->saved_data["copies"] = copies;
    return x.index_select(0, copies == 1 ? index : index.floor_divide(copies));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor inverse = ctx->get_saved_variables()[0];
    const int64_t copies = ctx->saved_data["copies"].toInt();
    at::Tensor grad = grads[0].index_select(0, inverse);
    if (copies != 1) grad = grad.view({-1, copies, grad.size(1)}).sum(1);
    return {grad, {}, {}, {}};
  }
};

}  // namespace

ExpertOrder sort_by_expert(const at::Tensor& experts, const at::Tensor& tokens_per_expert) {
  ExpertOrder order;
  order.slot_of_row = at::argsort(experts.flatten(), /*stable=*/true, /*dim=*/0);
  order.row_of_slot = at::empty_like(order.slot_of_row);
  order.row_of_slot.scatter_(0, order.slot_of_row,
                             at::arange(order.slot_of_row.numel(), order.slot_of_row.options()));
  order.offs = tokens_per_expert.cumsum(0).to(at::kInt);
  return order;
}

at::Tensor permute_by_expert(const at::Tensor& x, const ExpertOrder& order) {
  const int64_t copies = x.size(0) == 0 ? 1 : order.slot_of_row.size(0) / x.size(0);
  return GatherRows::apply(x, order.slot_of_row, order.row_of_slot, copies);
}

at::Tensor unpermute_to_slots(const at::Tensor& rows, const ExpertOrder& order) {
  return GatherRows::apply(rows, order.row_of_slot, order.slot_of_row, 1);
}

}  // namespace moe8
