// SPDX-License-Identifier: BSD-3-Clause
// One input of several products: the same bits as apart, one store of forms, and which tensors are
// that input.
#include "autograd/shared_input.h"

#include <torch/torch.h>

#include <array>

#include "autograd/training_formats.h"
#include "moe8/moe8.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::same_bits;

struct Results {
  std::vector<at::Tensor> outs, grads;
};

// Two linear products of x, converted to recipes of their own.
Results products_of(const at::Tensor& source, bool shared,
                    const std::array<const char*, 2>& recipes) {
  torch::manual_seed(3);
  const at::Tensor x = source.detach().clone().requires_grad_();
  std::vector<at::Tensor> weights;
  for (const int64_t n : {48, 32}) {
    weights.push_back(at::randn({n, x.size(-1)}).to(x.scalar_type()).requires_grad_());
  }
  Results results;
  {
    std::optional<SharedInput> once;
    if (shared) once.emplace(x);
    for (size_t i = 0; i < weights.size(); ++i) {
      results.outs.push_back(quantize_then_linear(x, weights[i], std::nullopt, recipe(recipes[i])));
    }
  }
  (results.outs[0].sum() + results.outs[1].square().sum()).backward();
  results.grads = {x.grad(), weights[0].grad(), weights[1].grad()};
  return results;
}

TEST(SharedInput, ChangesNoBit) {
  torch::manual_seed(1);
  const at::Tensor x = at::randn({3, 40, 64}).to(at::kBFloat16);
  constexpr std::array<const char*, 2> kRecipes[] = {
      {"rowwise", "rowwise"}, {"mxfp8_emulated", "mxfp8_emulated"}, {"rowwise", "tensorwise"}};
  for (const auto& recipes : kRecipes) {
    const Results apart = products_of(x, false, recipes), shared = products_of(x, true, recipes);
    for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(apart.outs[i], shared.outs[i]));
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(apart.grads[i], shared.grads[i]));
  }
}

TEST(SharedInput, IsTheSameNumbersInTheSameRows) {
  const at::Tensor x = at::randn({3, 8, 16});
  EXPECT_NE(input_forms(x), input_forms(x));
  const SharedInput once(x);
  const auto forms = input_forms(x);
  EXPECT_EQ(input_forms(x), forms);
  EXPECT_EQ(input_forms(x.view({24, 16})), forms);
  EXPECT_EQ(input_forms(x.detach()), forms);
  EXPECT_NE(input_forms(x.clone()), forms);
  EXPECT_NE(input_forms(x.view({48, 8})), forms);
  EXPECT_NE(input_forms(x.narrow(0, 0, 2)), forms);
  EXPECT_NE(input_forms(x.view({24, 16}).narrow(0, 1, 23)), forms);
  EXPECT_NE(input_forms(x.view(at::kInt)), forms);
}

TEST(SharedInput, TheInnermostCounts) {
  const at::Tensor x = at::randn({8, 16}), y = at::randn({8, 16});
  const SharedInput outer(x);
  const auto forms = input_forms(x);
  {
    const SharedInput inner(y);
    EXPECT_NE(input_forms(x), forms);
    EXPECT_EQ(input_forms(y), input_forms(y));
  }
  EXPECT_EQ(input_forms(x), forms);
  EXPECT_NE(input_forms(y), forms);
}

// Rows past 16 are in no group: what is made of them there is nobody else's.
TEST(SharedInput, GroupsHaveTheirOwn) {
  torch::manual_seed(4);
  const at::Tensor x = at::randn({32, 64}).to(at::kBFloat16), offs = at::tensor({16}, at::kInt);
  const at::Tensor B_t = at::randn({1, 64, 48}).to(at::kBFloat16);
  const at::Tensor weight = at::randn({48, 64}).to(at::kBFloat16);
  const auto both = [&](bool shared) {
    const at::Tensor a = x.detach().clone().requires_grad_();
    std::optional<SharedInput> once;
    if (shared) once.emplace(a);
    const at::Tensor grouped = quantize_then_scaled_grouped_mm(a, B_t.detach().requires_grad_(),
                                                               offs, recipe("fp8_rowwise"));
    const at::Tensor linear =
        quantize_then_linear(a, weight.detach().requires_grad_(), std::nullopt, recipe("rowwise"));
    (grouped.sum() + linear.sum()).backward();
    return std::vector{grouped.detach(), linear.detach(), a.grad()};
  };
  const auto apart = both(false), shared = both(true);
  for (size_t i = 0; i < apart.size(); ++i) EXPECT_TRUE(same_bits(apart[i], shared[i]));
}

}  // namespace
}  // namespace moe8
