// SPDX-License-Identifier: BSD-3-Clause
#include "experts/cuda_exchange.h"

#include <algorithm>

#include "cuda/experts/exchange.h"
#include "device/cuda_launch.h"
#include "routing/cuda_rows.h"

namespace moe8 {
namespace {

constexpr const char* kExchange = "token_exchange";

cuda::IndexType index_type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kInt ? cuda::IndexType::I32 : cuda::IndexType::I64;
}

template <typename T>
T* data_or_null(const at::Tensor& x) {
  return x.defined() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

}  // namespace

bool cuda_takes_exchange(const at::Tensor& experts, int64_t n_experts, int64_t ranks,
                         int64_t scale_bytes) {
  return !cuda_order_refusal(experts, n_experts) && ranks <= cuda::kMostRanks &&
         scale_bytes % 4 == 0;
}

Destinations cuda_destinations(const at::Tensor& experts, int64_t n_experts, int64_t ranks) {
  const Launch on(experts.device());
  const at::Tensor source = experts.contiguous();
  const int64_t T = source.size(0), k = source.size(1);
  Destinations to{empty_on(source, {T, std::min(k, ranks)}, at::kInt),
                  empty_on(source, {ranks}, at::kInt)};
  const cuda::RanksOfTokensArgs args{.experts = source.const_data_ptr(),
                                     .experts_type = index_type_of(source),
                                     .tokens = T,
                                     .top_k = k,
                                     .ranks = ranks,
                                     .own_experts = n_experts / ranks,
                                     .of_tokens = to.ranks.mutable_data_ptr<int32_t>(),
                                     .choices = to.choices.mutable_data_ptr<int32_t>()};
  check_launch(kExchange, cuda::launch_ranks_of_tokens(args, on.stream));
  return to;
}

at::Tensor cuda_pack_beside(const BesideTokens& tokens, const ExpertOrder& order) {
  const Launch on(tokens.experts.device());
  const at::Tensor experts = tokens.experts.contiguous();
  const at::Tensor scores = tokens.scores.defined() ? tokens.scores.contiguous() : tokens.scores;
  const at::Tensor scale = tokens.scale.defined() ? tokens.scale.contiguous() : tokens.scale;
  const cuda::BesideRow row{experts.size(1), scores.defined(), scale.defined() ? scale.size(1) : 0};
  const at::Tensor out = empty_on(experts, {order.rows(), 4 * row.words()}, at::kByte);
  const cuda::PackBesideArgs args{.row = row,
                                  .experts = experts.const_data_ptr(),
                                  .experts_type = index_type_of(experts),
                                  .scores = data_or_null<const float>(scores),
                                  .scale = data_or_null<const void>(scale),
                                  .slot_of_row = order.slot_of_row.const_data_ptr<int32_t>(),
                                  .ranks_of_token = order.top_k(),
                                  .rows = order.rows(),
                                  .out = static_cast<uint32_t*>(out.mutable_data_ptr())};
  check_launch(kExchange, cuda::launch_pack_beside(args, on.stream));
  return out;
}

BesideTokens cuda_unpack_beside(const at::Tensor& bytes, const BesideLayout& layout) {
  const Launch on(bytes.device());
  const int64_t rows = bytes.size(0), k = layout.top_k;
  BesideTokens tokens{empty_on(bytes, {rows, k}, at::kInt), {}, {}};
  if (layout.has_scores) tokens.scores = empty_on(bytes, {rows, k}, at::kFloat);
  if (layout.scale_bytes > 0) tokens.scale = empty_on(bytes, {rows, layout.scale_bytes}, at::kByte);
  const cuda::UnpackBesideArgs args{.row = {k, layout.has_scores, layout.scale_bytes},
                                    .in = static_cast<const uint32_t*>(bytes.const_data_ptr()),
                                    .rows = rows,
                                    .first_expert = layout.first_expert,
                                    .own_experts = layout.own_experts,
                                    .experts = tokens.experts.mutable_data_ptr<int32_t>(),
                                    .scores = data_or_null<float>(tokens.scores),
                                    .scale = data_or_null<uint32_t>(tokens.scale)};
  check_launch(kExchange, cuda::launch_unpack_beside(args, on.stream));
  return tokens;
}

}  // namespace moe8
