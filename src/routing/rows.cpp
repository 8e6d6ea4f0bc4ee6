// SPDX-License-Identifier: BSD-3-Clause
#include "routing/rows.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include "routing/cuda_rows.h"

namespace moe8 {

ExpertOrder only_in_groups(ExpertOrder order, int64_t rows) {
  order.slot_of_row = order.slot_of_row.narrow(0, 0, rows);
  return order;
}

at::Tensor rows_in_groups(const ExpertOrder& order) {
  const at::Tensor end = order.offs.narrow(0, order.n_experts() - 1, 1);
  if (end.is_cpu() && end.item<int32_t>() == order.rows()) return {};
  return at::arange(order.rows(), end.options()).lt(end).unsqueeze(1);
}

at::Tensor slots_in_groups(const ExpertOrder& order) {
  return order.experts.ge(0).logical_and_(order.experts.lt(order.n_experts()));
}

at::Tensor gather_tokens(const at::Tensor& x, const ExpertOrder& order) {
  if (!cuda_rows_refusal(x, order)) return cuda_gather_tokens(x, order);
  const at::Tensor token =
      order.top_k() == 1 ? order.slot_of_row : order.slot_of_row.floor_divide(order.top_k());
  const at::Tensor rows = x.index_select(0, token);
  const at::Tensor in_groups = rows_in_groups(order);
  return in_groups.defined() ? rows.masked_fill(in_groups.logical_not(), 0) : rows;
}

at::Tensor gather_slots(const at::Tensor& of_slots, const ExpertOrder& order) {
  const at::Tensor rows = of_slots.reshape({-1}).index_select(0, order.slot_of_row);
  const at::Tensor in_groups = rows_in_groups(order);
  return in_groups.defined() ? rows.masked_fill(in_groups.squeeze(1).logical_not(), 0) : rows;
}

at::Tensor to_slots(const at::Tensor& of_rows, const ExpertOrder& order) {
  const at::Tensor none = at::zeros({order.experts.numel()}, of_rows.options());
  return none.index_copy(0, order.slot_of_row.to(at::kLong), of_rows).view(order.experts.sizes());
}

at::Tensor sum_rows(const at::Tensor& rows, const ExpertOrder& order, const at::Tensor& scores,
                    at::ScalarType out_dtype) {
  const at::Tensor out = at::empty({order.tokens(), rows.size(1)}, rows.options().dtype(out_dtype));
  sum_rows_into(rows, order, scores, {}, 0, out);
  return out;
}

void sum_rows_into(const at::Tensor& rows, const ExpertOrder& order, const at::Tensor& scores,
                   const at::Tensor& bias, int64_t first_token, const at::Tensor& out) {
  if (!cuda_rows_refusal(rows, order)) {
    cuda_sum_rows_into(rows, order, scores, bias, first_token, out);
    return;
  }
  const int64_t k = order.top_k(), N = rows.size(1);
  if (k == 0) {
    out.zero_();
    return;
  }
  // Slots that have no row read the last one, and take zeros instead.
  const bool all_have_rows = order.rows() == order.experts.numel();
  const at::Tensor source = order.rows() == 0 ? at::zeros({1, N}, rows.options()) : rows;
  const at::Tensor row_of_slot =
      order.row_of_slot.clamp_max(source.size(0) - 1).view(order.experts.sizes());
  at::Tensor has_no_row, has_no_group, weights;
  if (!all_have_rows) has_no_row = order.row_of_slot.ge(order.rows()).view(order.experts.sizes());
  if (scores.defined() || bias.defined()) has_no_group = slots_in_groups(order).logical_not();
  if (scores.defined()) weights = scores.masked_fill(has_no_group, 0);
  for_row_blocks(out.size(0), N, rows.device(), [&](int64_t begin, int64_t size) {
    const auto slots = [&](const at::Tensor& of_slots, int64_t j) {  // the j-th of each token
      return of_slots.narrow(0, first_token + begin, size).select(1, j);
    };
    at::Tensor sum;
    for (int64_t j = 0; j < k; ++j) {
      at::Tensor term = source.index_select(0, slots(row_of_slot, j)).to(at::kFloat);
      if (has_no_row.defined()) term.masked_fill_(slots(has_no_row, j).unsqueeze(1), 0);
      if (bias.defined()) {
        const at::Tensor expert = slots(order.experts, j).clamp(0, order.n_experts() - 1);
        term.add_(
            bias.index_select(0, expert).masked_fill_(slots(has_no_group, j).unsqueeze(1), 0));
      }
      if (weights.defined()) term.mul_(slots(weights, j).unsqueeze(1));
      sum = sum.defined() ? sum.add_(term) : term;
    }
    out.narrow(0, begin, size).copy_(sum);
  });
}

}  // namespace moe8
