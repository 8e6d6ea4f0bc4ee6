// SPDX-License-Identifier: BSD-3-Clause
// The order of rows by expert, against a loop over slots.
#include <torch/torch.h>

#include "moe8/routing.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;

// Slot by slot: what the order means.
ExpertOrder slow_order(const at::Tensor& experts, int64_t n_experts) {
  const at::Tensor flat = experts.flatten().to(at::kLong);
  std::vector<int32_t> slot_of_row, offs;
  std::vector<int64_t> counts;
  for (int64_t e = 0; e <= n_experts; ++e) {  // the last: slots of no expert
    const size_t before = slot_of_row.size();
    for (int64_t s = 0; s < flat.numel(); ++s) {
      const auto expert = flat[s].item<int64_t>();
      const bool is_here = expert >= 0 && expert < n_experts;
      if ((is_here ? expert : n_experts) == e) slot_of_row.push_back(static_cast<int32_t>(s));
    }
    if (e == n_experts) break;
    counts.push_back(static_cast<int64_t>(slot_of_row.size() - before));
    offs.push_back(static_cast<int32_t>(slot_of_row.size()));
  }
  std::vector<int32_t> row_of_slot(slot_of_row.size());
  for (size_t r = 0; r < slot_of_row.size(); ++r) {
    row_of_slot[static_cast<size_t>(slot_of_row[r])] = static_cast<int32_t>(r);
  }
  return {experts, at::tensor(slot_of_row, at::kInt), at::tensor(row_of_slot, at::kInt),
          at::tensor(offs, at::kInt), at::tensor(counts, at::kLong)};
}

void expect_same(const ExpertOrder& expected, const ExpertOrder& got) {
  EXPECT_TRUE(same_bits(expected.slot_of_row, got.slot_of_row));
  EXPECT_TRUE(same_bits(expected.row_of_slot, got.row_of_slot));
  EXPECT_TRUE(same_bits(expected.offs, got.offs));
  EXPECT_TRUE(same_bits(expected.counts, got.counts));
}

TEST(ExpertOrder, GroupsAreContiguousAndStable) {
  const at::Tensor experts = at::tensor({2, 0, 3, 2, 0, 2}, at::kLong).view({3, 2});
  const ExpertOrder order = expert_order(experts, 5);
  EXPECT_TRUE(same_bits(at::tensor({1, 4, 0, 3, 5, 2}, at::kInt), order.slot_of_row));
  EXPECT_TRUE(same_bits(at::tensor({2, 0, 5, 3, 1, 4}, at::kInt), order.row_of_slot));
  EXPECT_TRUE(same_bits(at::tensor({2, 2, 5, 6, 6}, at::kInt), order.offs));
  EXPECT_TRUE(same_bits(at::tensor({2, 0, 3, 1, 0}, at::kLong), order.counts));
  EXPECT_EQ(order.tokens(), 3);
  EXPECT_EQ(order.top_k(), 2);
  EXPECT_EQ(order.rows(), 6);
  EXPECT_EQ(order.n_experts(), 5);
}

TEST(ExpertOrder, EqualsALoopOverSlots) {
  torch::manual_seed(1);
  for (const int64_t tokens : {0, 1, 7, 40}) {
    for (const int64_t top_k : {0, 1, 3}) {
      for (const int64_t n_experts : {1, 2, 9}) {
        // Some are of no expert here.
        const at::Tensor experts = at::randint(-2, n_experts + 2, {tokens, top_k}, at::kLong);
        expect_same(slow_order(experts, n_experts), expert_order(experts, n_experts));
        const at::Tensor strided = experts.t().contiguous().t().to(at::kInt);
        expect_same(slow_order(experts, n_experts), expert_order(strided, n_experts));
      }
    }
  }
}

TEST(ExpertOrder, MisuseIsToldInWords) {
  const auto message = [](const at::Tensor& experts, int64_t n_experts = 4) {
    return error_of([&] { expert_order(experts, n_experts); });
  };
  const at::Tensor good = at::zeros({3, 2}, at::kLong);
  EXPECT_EQ(message(good), "(no error)");
  EXPECT_THAT(message(at::Tensor()), HasSubstr("[expert_order] experts: expected a tensor"));
  EXPECT_THAT(message(good[0]), HasSubstr("expected int64 or int32 [T, k], got Long [2] on cpu"));
  EXPECT_THAT(message(good.to(at::kFloat)), HasSubstr("got Float [3, 2]"));
  EXPECT_THAT(message(good, 0), HasSubstr("n_experts: expected 1 to 2^31 - 2, got 0"));
  EXPECT_THAT(message(good.to(at::kMeta)), HasSubstr("a meta tensor"));
}

}  // namespace
}  // namespace moe8
