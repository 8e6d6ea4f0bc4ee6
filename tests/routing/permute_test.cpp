// SPDX-License-Identifier: BSD-3-Clause
// Rows by expert and their sums: the round trip, values, gradients, slots of no expert.
#include <torch/torch.h>

#include <cmath>

#include "moe8/routing.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::small_integers;

at::Tensor random_experts(int64_t tokens, int64_t top_k, int64_t n_experts) {
  return std::get<1>(at::topk(at::rand({tokens, n_experts}), top_k, 1));
}

at::Tensor doubles(const at::Tensor& x) {
  return x.detach().to(at::kDouble);
}

TEST(Permute, RowsAreThoseOfTheirTokens) {
  torch::manual_seed(1);
  for (const int64_t top_k : {1, 2, 5}) {
    const at::Tensor x = at::randn({37, 16});
    const at::Tensor experts = random_experts(37, top_k, 9);
    const ExpertOrder order = expert_order(experts, 9);
    const at::Tensor rows = permute_tokens(x, order);
    for (int64_t expert = 0, row = 0; expert < 9; ++expert) {
      for (; row < order.offs[expert].item<int64_t>(); ++row) {
        const int64_t slot = order.slot_of_row[row].item<int64_t>();
        EXPECT_EQ(experts.flatten()[slot].item<int64_t>(), expert);
        EXPECT_TRUE(same_bits(x[slot / top_k], rows[row]));
      }
    }
  }
}

TEST(Permute, RowsInNoGroupAreZero) {
  const at::Tensor experts = at::tensor({-1, 1, 3, 0}, at::kLong).view({2, 2});
  const ExpertOrder order = expert_order(experts, 3);
  const at::Tensor x = at::tensor({1.0f, 2.0f, INFINITY, NAN}).view({2, 2});
  const at::Tensor rows = permute_tokens(x, order);  // token 1, token 0, and two of nobody
  EXPECT_TRUE(testing::same_values(at::stack({x[1], x[0], at::zeros({2}), at::zeros({2})}), rows));
}

// In float64, slot by slot.
at::Tensor slow_combine(const at::Tensor& rows, const ExpertOrder& order,
                        const at::Tensor& scores) {
  const at::Tensor out = at::zeros({order.tokens(), rows.size(1)}, at::kDouble);
  for (int64_t s = 0; s < order.rows(); ++s) {
    const int64_t t = s / order.top_k(), expert = order.experts.flatten()[s].item<int64_t>();
    if (expert < 0 || expert >= order.n_experts()) continue;
    const double w = scores.defined() ? scores.flatten()[s].item<double>() : 1.0;
    out[t] += w * doubles(rows[order.row_of_slot[s].item<int64_t>()]);
  }
  return out;
}

TEST(Combine, SumsUpTheRowsOfEachToken) {
  torch::manual_seed(2);
  for (const int64_t top_k : {1, 3}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const ExpertOrder order = expert_order(at::randint(-1, 6, {29, top_k}, at::kLong), 5);
      at::Tensor rows = at::randn({order.rows(), 12}).to(dtype);
      // What is in no group may hold anything.
      rows.slice(0, order.offs[-1].item<int64_t>()).fill_(NAN);
      at::Tensor scores = at::rand({29, top_k});
      scores.masked_fill_(order.experts.lt(0).logical_or(order.experts.ge(5)), NAN);
      for (const at::Tensor& w : {at::Tensor(), scores}) {
        const at::Tensor expected = slow_combine(rows, order, w);
        const at::Tensor got = combine_rows(rows, order, w, at::kFloat);
        EXPECT_TRUE(at::allclose(expected.to(at::kFloat), got, 1e-5, 1e-6));
        EXPECT_TRUE(same_bits(got.to(at::kBFloat16), combine_rows(rows, order, w, at::kBFloat16)));
        EXPECT_EQ(combine_rows(rows, order, w).scalar_type(), dtype);
      }
    }
  }
}

// Blocks of a large matrix are summed up as one.
TEST(Combine, LargeMatricesAreSummedUpInTheSameOrder) {
  torch::manual_seed(3);
  const ExpertOrder order = expert_order(random_experts(700, 4, 16), 16);
  const at::Tensor rows = at::randn({2800, 512}), scores = at::rand({700, 4});
  at::Tensor expected = at::zeros({700, 512});
  for (int64_t j = 0; j < 4; ++j) {
    const at::Tensor of_j = rows.index_select(0, order.row_of_slot.view({700, 4}).select(1, j));
    expected = j == 0 ? of_j * scores.narrow(1, j, 1) : expected + of_j * scores.narrow(1, j, 1);
  }
  EXPECT_TRUE(same_bits(expected, combine_rows(rows, order, scores)));
}

TEST(Permute, GradientsAreThoseOfIndexSelect) {
  torch::manual_seed(4);
  const ExpertOrder order = expert_order(random_experts(21, 3, 6), 6);
  // Small integers: sums are exact in any order.
  const at::Tensor upstream = small_integers({63, 8}, at::kFloat, 3);
  const at::Tensor scores = small_integers({21, 3}, at::kFloat, 5).requires_grad_();
  const at::Tensor x = small_integers({21, 8}, at::kFloat, 4).requires_grad_();
  const at::Tensor out = combine_rows(permute_tokens(x, order) * upstream, order, scores);
  const auto got = torch::autograd::grad({out.square().sum()}, {x, scores});

  const at::Tensor rows = x.index_select(0, order.slot_of_row.floor_divide(3)) * upstream;
  const at::Tensor plain =
      (rows.index_select(0, order.row_of_slot).view({21, 3, 8}) * scores.unsqueeze(2)).sum(1);
  EXPECT_TRUE(at::equal(plain, out));  // 0 of either sign
  const auto expected = torch::autograd::grad({plain.square().sum()}, {x, scores});
  EXPECT_TRUE(at::equal(expected[0], got[0]));
  EXPECT_TRUE(at::equal(expected[1], got[1]));
}

TEST(Permute, SecondDerivativesAreThoseOfIndexSelect) {
  const ExpertOrder order = expert_order(random_experts(5, 2, 4), 4);
  const at::Tensor x = small_integers({5, 3}, at::kFloat, 6).requires_grad_();
  const at::Tensor scores = small_integers({5, 2}, at::kFloat, 7).requires_grad_();
  const auto second = [&](const at::Tensor& out) {
    const auto first =
        torch::autograd::grad({out.pow(3).sum()}, {x, scores}, {}, std::nullopt, true);
    return torch::autograd::grad({first[0].sum() + first[1].sum()}, {x, scores});
  };
  const auto got = second(combine_rows(permute_tokens(x, order), order, scores));
  const auto expected = second(
      (x.index_select(0, order.slot_of_row.floor_divide(2)).index_select(0, order.row_of_slot))
          .view({5, 2, 3})
          .mul(scores.unsqueeze(2))
          .sum(1));
  EXPECT_TRUE(at::allclose(expected[0], got[0]));
  EXPECT_TRUE(at::allclose(expected[1], got[1]));
}

TEST(Permute, SlotsOfNoExpertHaveNoGradient) {
  const ExpertOrder order = expert_order(at::tensor({-1, 1, 2, 0}, at::kLong).view({2, 2}), 2);
  const at::Tensor x = at::ones({2, 3}).requires_grad_();
  const at::Tensor scores = at::ones({2, 2}).requires_grad_();
  const at::Tensor rows = permute_tokens(x, order);
  combine_rows(rows * 2, order, scores).sum().backward();
  EXPECT_TRUE(same_bits(at::full({2, 3}, 2.0f), x.grad()));  // one expert each
  EXPECT_TRUE(same_bits(at::tensor({0.0f, 6.0f, 0.0f, 6.0f}).view({2, 2}), scores.grad()));
}

TEST(Permute, NothingAtAll) {
  const ExpertOrder none = expert_order(at::zeros({0, 2}, at::kLong), 3);
  const at::Tensor x = at::zeros({0, 4}).requires_grad_();
  const at::Tensor out = combine_rows(permute_tokens(x, none), none);
  EXPECT_EQ(out.sizes(), (std::vector<int64_t>{0, 4}));
  out.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  const ExpertOrder no_experts = expert_order(at::zeros({5, 0}, at::kLong), 3);
  EXPECT_TRUE(same_bits(at::zeros({5, 4}),
                        combine_rows(permute_tokens(at::ones({5, 4}), no_experts), no_experts)));
}

TEST(Permute, MisuseIsToldInWords) {
  const ExpertOrder order = expert_order(at::zeros({3, 2}, at::kLong), 2);
  EXPECT_THAT(error_of([&] {
                permute_tokens(at::zeros({4, 2}), order);
              }),
              HasSubstr("[permute_tokens] x: expected [3, N] on cpu as the order says, got Float "
                        "[4, 2] on cpu"));
  EXPECT_THAT(error_of([&] {
                permute_tokens(at::zeros({3, 2}, at::kHalf), order);
              }),
              HasSubstr("x: expected bfloat16 or float32"));
  EXPECT_THAT(error_of([&] {
                permute_tokens(at::zeros({3, 2}), {});
              }),
              HasSubstr("order: expected what expert_order() made"));
  EXPECT_THAT(error_of([&] {
                combine_rows(at::zeros({3, 2}), order);
              }),
              HasSubstr("[combine_rows] rows: expected [6, N]"));
  EXPECT_THAT(error_of([&] {
                combine_rows(at::zeros({6, 2}), order, at::zeros({3, 3}));
              }),
              HasSubstr("scores: expected floating-point [3, 2] on cpu, got Float [3, 3]"));
  EXPECT_THAT(error_of([&] {
                combine_rows(at::zeros({6, 2}), order, {}, at::kHalf);
              }),
              HasSubstr("expected bfloat16 or float32, got Half"));
}

}  // namespace
}  // namespace moe8
