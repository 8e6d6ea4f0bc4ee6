// SPDX-License-Identifier: BSD-3-Clause
#include "routing/cuda_rows.h"

#include "cuda/experts/combine.h"
#include "cuda/experts/gather.h"
#include "cuda/experts/routing.h"
#include "cuda/groups/group_metadata.h"
#include "device/cuda_launch.h"
#include "device/implementation.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

cuda::IndexType index_type(const at::Tensor& x) {
  return x.scalar_type() == at::kInt ? cuda::IndexType::I32 : cuda::IndexType::I64;
}

const int32_t* indices(const at::Tensor& x) {
  return x.const_data_ptr<int32_t>();
}

// The end of the last group: rows from there on are in none.
const int32_t* rows_in_groups(const ExpertOrder& order) {
  return indices(order.offs) + (order.n_experts() - 1);
}

}  // namespace

std::optional<std::string> cuda_order_refusal(const at::Tensor& experts, int64_t n_experts) {
  if (!experts.is_cuda()) return "experts are not on a GPU";
  return kernels_refusal(experts.device(), n_experts);
}

std::optional<std::string> cuda_rows_refusal(const at::Tensor& rows, const ExpertOrder& order) {
  if (!rows.is_cuda()) return "rows are not on a GPU";
  if (order.slot_of_row.device() != rows.device()) return "the order is on another device";
  return kernels_refusal(rows.device(), order.n_experts());
}

ExpertOrder cuda_expert_order(const at::Tensor& experts, int64_t n_experts) {
  constexpr const char* kOp = "expert_order";
  const Launch launch(experts.device());
  const at::Tensor source = experts.detach().contiguous();
  const int64_t slots = source.numel();
  const at::Tensor workspace =
      empty_on(source, {cuda::expert_order_workspace_bytes(slots, n_experts)}, at::kByte);
  ExpertOrder order{.experts = source,
                    .slot_of_row = empty_on(source, {slots}, at::kInt),
                    .row_of_slot = empty_on(source, {slots}, at::kInt),
                    .offs = empty_on(source, {n_experts}, at::kInt),
                    .counts = empty_on(source, {n_experts}, at::kLong)};
  const cuda::ExpertOrderArgs args{.experts = source.const_data_ptr(),
                                   .experts_type = index_type(source),
                                   .slots = slots,
                                   .groups = n_experts,
                                   .workspace = workspace.mutable_data_ptr(),
                                   .offs = order.offs.mutable_data_ptr<int32_t>(),
                                   .counts = order.counts.mutable_data_ptr(),
                                   .counts_type = cuda::IndexType::I64,
                                   .slot_of_row = order.slot_of_row.mutable_data_ptr<int32_t>(),
                                   .row_of_slot = order.row_of_slot.mutable_data_ptr<int32_t>()};
  check_launch(kOp, cuda::launch_expert_order(args, launch.stream));
  return order;
}

at::Tensor cuda_gather_tokens(const at::Tensor& x, const ExpertOrder& order) {
  const Launch launch(x.device());
  const at::Tensor source = x.contiguous();
  const at::Tensor out = empty_on(source, {order.rows(), source.size(1)}, source.scalar_type());
  const cuda::GatherRowsArgs args{
      .in = source.const_data_ptr(),
      .tokens = order.tokens(),
      .row_bytes = source.size(1) * static_cast<int64_t>(source.element_size()),
      .top_k = order.top_k(),
      .row_of_slot = indices(order.row_of_slot),
      .rows_in_groups = rows_in_groups(order),
      .out = out.mutable_data_ptr(),
      .rows = order.rows()};
  check_launch("permute_tokens", cuda::launch_gather_rows(args, launch.stream));
  return out;
}

void cuda_sum_rows_into(const at::Tensor& rows, const ExpertOrder& order, const at::Tensor& scores,
                        const at::Tensor& bias, int64_t first_token, const at::Tensor& out) {
  const Launch launch(rows.device());
  const int64_t tokens = out.size(0);
  const auto own = [&](const at::Tensor& of_tokens) {
    return of_tokens.narrow(0, first_token, tokens).contiguous();
  };
  const at::Tensor source = rows.contiguous();
  const at::Tensor weights = scores.defined() ? own(scores) : at::Tensor();
  const at::Tensor added = bias.defined() ? bias.contiguous() : at::Tensor();
  const at::Tensor experts = own(order.experts);
  const cuda::CombineArgs args{
      .rows = source.const_data_ptr(),
      .rows_type = float_type(source.scalar_type()),
      .tokens = tokens,
      .top_k = order.top_k(),
      .columns = source.size(1),
      .row_of_slot = indices(order.row_of_slot) + first_token * order.top_k(),
      .rows_in_groups = rows_in_groups(order),
      .scores = weights.defined() ? weights.const_data_ptr<float>() : nullptr,
      .bias = added.defined() ? added.const_data_ptr() : nullptr,
      .bias_type = added.defined() ? float_type(added.scalar_type()) : FloatType::F32,
      .experts = experts.const_data_ptr(),
      .experts_type = index_type(experts),
      .out = out.mutable_data_ptr(),
      .out_type = float_type(out.scalar_type())};
  check_launch("combine_rows", cuda::launch_combine(args, launch.stream));
}

}  // namespace moe8
