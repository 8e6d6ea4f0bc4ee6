// SPDX-License-Identifier: BSD-3-Clause
// The order of rows by expert, in LibTorch's operations.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include <limits>

#include "base/check.h"
#include "moe8/routing.h"
#include "quantize/check_input.h"
#include "routing/cuda_rows.h"

namespace moe8 {
namespace {

void check_experts(const at::Tensor& experts, int64_t n_experts) {
  constexpr const char* kOp = "expert_order";
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check_holds_its_values(kOp, "experts", experts);
  const bool is_index = experts.scalar_type() == at::kLong || experts.scalar_type() == at::kInt;
  MOE8_CHECK(experts.dim() == 2 && is_index, kOp, "experts", "expected int64 or int32 [T, k], got ",
             describe(experts));
  check_device_supported(kOp, "experts", experts);
  MOE8_CHECK(experts.numel() < kMost, kOp, "experts", "expected fewer than 2^31 slots, got ",
             experts.sizes());
  MOE8_CHECK(n_experts >= 1 && n_experts < kMost, kOp, "n_experts", "expected 1 to 2^31 - 2, got ",
             n_experts);
}

}  // namespace

ExpertOrder expert_order(const at::Tensor& experts, int64_t n_experts) {
  check_experts(experts, n_experts);
  if (!cuda_order_refusal(experts, n_experts)) return cuda_expert_order(experts, n_experts);
  ExpertOrder order;
  order.experts = experts.detach();
  // Slots of no expert come after those of the last one.
  const at::Tensor flat = order.experts.reshape({-1}).to(at::kLong);
  const at::Tensor is_here = flat.ge(0).logical_and_(flat.lt(n_experts));
  const auto [sorted, slot_of_row] = at::sort(at::where(is_here, flat, n_experts),
                                              /*stable=*/std::optional(true), /*dim=*/0);
  const at::Tensor rows = at::arange(flat.numel(), flat.options().dtype(at::kInt));
  order.slot_of_row = slot_of_row.to(at::kInt);
  order.row_of_slot = at::empty_like(rows).scatter_(0, slot_of_row, rows);
  order.offs = at::searchsorted(sorted, at::arange(n_experts, flat.options()), /*out_int32=*/true,
                                /*right=*/true);
  const at::Tensor ends = order.offs.to(at::kLong);
  order.counts = ends.clone();
  order.counts.slice(0, 1).sub_(ends.slice(0, 0, -1));
  return order;
}

}  // namespace moe8
