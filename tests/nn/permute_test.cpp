// SPDX-License-Identifier: BSD-3-Clause
// The order of rows by expert, the round trip, and gradients against index_select's own.
#include "nn/permute.h"

#include <torch/torch.h>

#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::same_bits;

at::Tensor counts_of(const at::Tensor& experts, int64_t n_experts) {
  return at::bincount(experts.flatten(), {}, n_experts);
}

at::Tensor random_experts(int64_t tokens, int64_t top_k, int64_t n_experts) {
  return std::get<1>(at::topk(at::rand({tokens, n_experts}), top_k, 1));
}

TEST(SortByExpert, GroupsAreContiguousAndStable) {
  const at::Tensor experts = at::tensor({2, 0, 3, 2, 0, 2}, at::kLong).view({3, 2});
  const ExpertOrder order = sort_by_expert(experts, counts_of(experts, 5));
  EXPECT_TRUE(same_bits(at::tensor({1, 4, 0, 3, 5, 2}, at::kLong), order.slot_of_row));
  EXPECT_TRUE(same_bits(at::tensor({2, 0, 5, 3, 1, 4}, at::kLong), order.row_of_slot));
  EXPECT_TRUE(same_bits(at::tensor({2, 2, 5, 6, 6}, at::kInt), order.offs));
}

TEST(Permute, RoundTripGivesEveryTokenTopKTimes) {
  torch::manual_seed(1);
  for (const int64_t top_k : {1, 2, 5}) {
    const at::Tensor x = at::randn({37, 16});
    const at::Tensor experts = random_experts(37, top_k, 9);
    const ExpertOrder order = sort_by_expert(experts, counts_of(experts, 9));
    const at::Tensor rows = permute_by_expert(x, order);
    EXPECT_TRUE(same_bits(at::repeat_interleave(x, top_k, 0), unpermute_to_slots(rows, order)));
    for (int64_t expert = 0, row = 0; expert < 9; ++expert) {
      for (; row < order.offs[expert].item<int64_t>(); ++row) {
        const int64_t slot = order.slot_of_row[row].item<int64_t>();
        EXPECT_EQ(experts.flatten()[slot].item<int64_t>(), expert);
        EXPECT_TRUE(same_bits(x[slot / top_k], rows[row]));
      }
    }
  }
}

TEST(Permute, GradientsAreThoseOfIndexSelect) {
  torch::manual_seed(2);
  const at::Tensor experts = random_experts(21, 3, 6);
  const ExpertOrder order = sort_by_expert(experts, counts_of(experts, 6));
  // Small integers: sums are exact in any order.
  const at::Tensor upstream = testing::small_integers({63, 8}, at::kFloat, 3);
  const at::Tensor x = testing::small_integers({21, 8}, at::kFloat, 4).requires_grad_();
  const at::Tensor plain = x.detach().clone().requires_grad_();

  unpermute_to_slots(permute_by_expert(x, order) * upstream, order).square().sum().backward();
  const at::Tensor tokens = order.slot_of_row.floor_divide(3);
  (plain.index_select(0, tokens) * upstream)
      .index_select(0, order.row_of_slot)
      .square()
      .sum()
      .backward();
  EXPECT_TRUE(same_bits(plain.grad(), x.grad()));
}

}  // namespace
}  // namespace moe8
