// SPDX-License-Identifier: BSD-3-Clause
// The bias of experts: who gets which row, and the sums of its gradient, against plain loops.
#include "autograd/group_bias.h"

#include <torch/torch.h>

#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::offs_of;
using testing::same_bits;

// In float64, expert by expert.
at::Tensor exact_sums(const at::Tensor& x, const std::vector<int64_t>& groups) {
  std::vector<at::Tensor> sums;
  int64_t begin = 0;
  for (const int64_t size : groups) {
    sums.push_back(x.narrow(0, begin, size).to(at::kDouble).sum(0));
    begin += size;
  }
  return at::stack(sums);
}

// Sizes around the pieces in which groups are summed, empty groups at both ends and in between.
const std::vector<std::vector<int64_t>>& groupings() {
  static const std::vector<std::vector<int64_t>> all = {
      {7}, {0}, {0, 3, 0, 5, 0}, {256, 256}, {255, 1, 257, 0, 600}, {1, 1, 1, 1}, {0, 0}};
  return all;
}

TEST(GroupBias, EveryRowGetsThatOfItsExpert) {
  for (const auto& groups : groupings()) {
    for (const int64_t tail : {0, 3}) {
      const at::Tensor offs = offs_of(groups);
      const int64_t M = offs[-1].item<int>() + tail;
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        const at::Tensor bias = at::randn({static_cast<int64_t>(groups.size()), 5});
        const at::Tensor before = at::randn({M, 5}).to(dtype);
        const at::Tensor expected = before.clone();
        int64_t begin = 0;
        for (size_t e = 0; e < groups.size(); ++e) {
          expected.narrow(0, begin, groups[e]).add_(bias[static_cast<int64_t>(e)].to(dtype));
          begin += groups[e];
        }
        const at::Tensor out = before.clone();
        add_group_bias(out, bias, offs);
        EXPECT_TRUE(same_bits(expected, out)) << groups;
      }
    }
  }
}

TEST(GroupBias, SumsAreThoseOfTheRows) {
  for (const auto& groups : groupings()) {
    const at::Tensor offs = offs_of(groups);
    // Integers: exact in float32, whatever the order.
    const at::Tensor x = testing::small_integers({offs[-1].item<int>() + 3, 5}, at::kBFloat16, 1);
    EXPECT_TRUE(same_bits(exact_sums(x, groups).to(at::kFloat), group_sums(x, offs))) << groups;
  }
  const at::Tensor whole = testing::small_integers({300, 4}, at::kFloat, 2);
  EXPECT_TRUE(same_bits(whole.sum(0, true), group_sums(whole, TokenGroups())));
}

TEST(GroupBias, SumsOfNothing) {
  EXPECT_TRUE(same_bits(at::zeros({2, 4}), group_sums(at::zeros({0, 4}), offs_of({0, 0}))));
  EXPECT_TRUE(same_bits(at::zeros({2, 4}), group_sums(at::ones({3, 4}), offs_of({0, 0}))));
  EXPECT_TRUE(same_bits(at::zeros({2, 0}), group_sums(at::ones({3, 0}), offs_of({1, 2}))));
  EXPECT_TRUE(same_bits(at::zeros({0, 4}), group_sums(at::ones({3, 4}), at::zeros({0}, at::kInt))));
  const at::Tensor out = at::ones({3, 4});
  add_group_bias(out, at::ones({0, 4}), at::zeros({0}, at::kInt));
  EXPECT_TRUE(same_bits(at::ones({3, 4}), out));
}

// One running sum in float32 of 100,000 such numbers is wrong by some 1e-4.
TEST(GroupBias, SumsOfManyRowsStayAccurate) {
  torch::manual_seed(1);
  const at::Tensor x = at::rand({100003, 8}).to(at::kBFloat16);
  const at::Tensor exact = exact_sums(x, {3, 100000});
  const at::Tensor got = group_sums(x, offs_of({3, 100000})).to(at::kDouble);
  EXPECT_LT(((got - exact) / exact).abs().max().item<double>(), 4e-6);
  EXPECT_TRUE(same_bits(group_sums(x, offs_of({3, 100000})), got.to(at::kFloat))) << "repeats";
}

TEST(GroupBias, ANaNStaysInItsGroup) {
  const at::Tensor x = at::ones({10, 4});
  x[2][1] = NAN;
  x[9][0] = NAN;  // in no group
  const at::Tensor sums = group_sums(x, offs_of({2, 3, 4}));
  EXPECT_EQ(sums.isnan().sum().item<int>(), 1);
  EXPECT_TRUE(sums[1][1].isnan().item<bool>());
}

// On a GPU nobody has looked at offs.
TEST(GroupBias, OffsThatDoNotFitDoNoHarm) {
  const at::Tensor out = at::zeros({4, 2});
  for (const at::Tensor& offs :
       {at::tensor({3, 1, 9}, at::kInt), at::tensor({-5, 2, 3}, at::kInt)}) {
    add_group_bias(out, at::ones({3, 2}), offs);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
    EXPECT_TRUE(group_sums(at::ones({4, 2}), offs).le(4).all().item<bool>());
  }
}

}  // namespace
}  // namespace moe8
