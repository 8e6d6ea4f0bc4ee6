// SPDX-License-Identifier: BSD-3-Clause
// Linear operations as a caller sees them: accuracy, gradients, shapes, misuse.
#include "moe8/linear.h"

#include <torch/torch.h>

#include "moe8/mx.h"
#include "testing/compare.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::sqnr_db;

struct Results {
  at::Tensor y, grad_x, grad_weight, grad_bias;
};

template <typename Op>
Results forward_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& grad, Op op) {
  const at::Tensor leaf_x = x.detach().requires_grad_();
  const at::Tensor leaf_w = weight.detach().requires_grad_();
  const at::Tensor leaf_b = bias.detach().requires_grad_();
  const at::Tensor y = op(leaf_x, leaf_w, leaf_b);
  y.backward(grad.to(y.scalar_type()));
  return {y.detach(), leaf_x.grad(), leaf_w.grad(), leaf_b.grad()};
}

std::vector<RecipeInfo> linear_recipes() {
  std::vector<RecipeInfo> linear;
  for (const RecipeInfo& recipe : all_recipes()) {
    if (!is_grouped(recipe.config)) linear.push_back(recipe);
  }
  return linear;
}

TEST(Linear, ReachesTheAccuracyBarOfEveryRecipe) {
  torch::manual_seed(2);
  const at::Tensor x = torch::randn({3, 67, 256}).to(at::kBFloat16);
  const at::Tensor weight = (torch::randn({96, 256}) / 16).to(at::kBFloat16);
  const at::Tensor bias = torch::randn({96}).to(at::kBFloat16);
  const at::Tensor grad = torch::randn({3, 67, 96}).to(at::kBFloat16);
  const auto exact = [](const at::Tensor& t) { return t.to(at::kFloat); };
  const Results expected = forward_backward(
      exact(x), exact(weight), exact(bias), exact(grad),
      [](const auto& a, const auto& w, const auto& b) { return at::linear(a, w, b); });
  for (const RecipeInfo& recipe : linear_recipes()) {
    const Results got =
        forward_backward(x, weight, bias, grad, [&](const auto& a, const auto& w, const auto& b) {
          return quantize_then_linear(a, w, b, recipe.config);
        });
    const testing::AccuracyBar& bar = testing::accuracy_bar(recipe.name);
    EXPECT_GE(sqnr_db(expected.y, got.y), bar.out) << recipe.name;
    EXPECT_GE(sqnr_db(expected.grad_x, got.grad_x), bar.grad_input) << recipe.name;
    EXPECT_GE(sqnr_db(expected.grad_weight, got.grad_weight), bar.grad_weight) << recipe.name;
    EXPECT_GE(sqnr_db(expected.grad_bias, got.grad_bias), 40) << recipe.name;
    EXPECT_TRUE(got.grad_weight.is_contiguous());
  }
}

TEST(Linear, TheBiasIsAddedInTheOutputDtype) {
  const at::Tensor x = torch::randn({5, 32}).to(at::kBFloat16);
  const at::Tensor weight = torch::randn({8, 32}).to(at::kBFloat16);
  const at::Tensor bias = torch::randn({8});
  for (const RecipeInfo& recipe : linear_recipes()) {
    const at::Tensor without = quantize_then_linear(x, weight, std::nullopt, recipe.config);
    EXPECT_TRUE(same_bits(without + bias.to(at::kBFloat16),
                          quantize_then_linear(x, weight, bias, recipe.config)));
  }
}

TEST(Linear, AnyRankAndAnyNumberOfRows) {
  const at::Tensor weight = torch::randn({8, 40}).requires_grad_();
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{40},
                                            {1, 40},
                                            {7, 40},
                                            {2, 3, 40},
                                            {0, 40},
                                            {2, 0, 40},
                                            {2, 1, 3, 40}}) {
    for (const RecipeInfo& recipe : linear_recipes()) {
      const at::Tensor x = torch::randn(sizes).requires_grad_();
      const at::Tensor y = quantize_then_linear(x, weight, std::nullopt, recipe.config);
      std::vector<int64_t> expected = sizes;
      expected.back() = 8;
      ASSERT_EQ(y.sizes(), at::IntArrayRef(expected));
      ASSERT_EQ(y.scalar_type(), at::kFloat);
      y.sum().backward();
      ASSERT_EQ(x.grad().sizes(), x.sizes());
      if (x.numel() == 0) {
        ASSERT_TRUE(weight.grad().eq(0).all().item<bool>());
      }
      weight.mutable_grad() = at::Tensor();
    }
  }
}

TEST(Linear, DisabledCastsAreHighPrecision) {
  const at::Tensor x = torch::randn({5, 32});
  const at::Tensor weight = torch::randn({8, 32});
  const CastConfig off{.scaling_type = ScalingType::DISABLED};
  const Float8LinearConfig config{
      .cast_config_input = off, .cast_config_weight = off, .cast_config_grad_output = off};
  EXPECT_GE(sqnr_db(at::linear(x, weight), quantize_then_linear(x, weight, std::nullopt, config)),
            120);
}

TEST(Linear, FormatsOfInputWeightAndGradientMayDiffer) {
  torch::manual_seed(3);
  const at::Tensor x = torch::randn({64, 64}).requires_grad_();
  const at::Tensor weight = torch::randn({32, 64}).requires_grad_();
  MXLinearConfig config;
  config.elem_dtype_weight_override = ElemDtype::E2M1;
  config.elem_dtype_grad_output_override = ElemDtype::E5M2;
  const at::Tensor y = quantize_then_linear(x, weight, std::nullopt, config);
  const auto values = [](const at::Tensor& t, ElemDtype elem, int64_t axis) {
    return fake_quantize_mx(t, elem, ScaleCalculationMode::FLOOR, axis);
  };
  EXPECT_GE(sqnr_db(values(x, ElemDtype::E4M3, 1).mm(values(weight, ElemDtype::E2M1, 1).t()), y),
            110);
  const at::Tensor grad = torch::randn({64, 32});
  y.backward(grad);
  EXPECT_GE(
      sqnr_db(values(grad, ElemDtype::E5M2, 1).mm(values(weight, ElemDtype::E2M1, 0)), x.grad()),
      110);
  EXPECT_GE(sqnr_db(values(grad, ElemDtype::E5M2, 0).t().mm(values(x, ElemDtype::E4M3, 0)),
                    weight.grad()),
            110);
}

TEST(Linear, MisuseIsToldInWords) {
  const at::Tensor x = torch::randn({5, 32});
  const at::Tensor weight = torch::randn({8, 32});
  const auto message = [](const at::Tensor& a, const at::Tensor& w,
                          const std::optional<at::Tensor>& b,
                          const Config& config = MXLinearConfig{}) {
    return error_of([&] { quantize_then_linear(a, w, b, config); });
  };
  EXPECT_THAT(message(x.narrow(1, 0, 31), weight, {}),
              HasSubstr("x: expected [..., 32] to fit a weight of [8, 32]"));
  EXPECT_THAT(message(at::ones({}), weight, {}), HasSubstr("x: expected [..., 32]"));
  EXPECT_THAT(message(x, weight[0], {}), HasSubstr("weight: expected [N, K]"));
  EXPECT_THAT(message(x, weight, at::ones({7})), HasSubstr("bias: expected floating-point [8]"));
  EXPECT_THAT(message(x.to(at::kLong), weight, {}),
              HasSubstr("x: expected bfloat16 or float32, got Long"));
  EXPECT_THAT(message(x, weight, {}, MXFP8GroupedMMConfig{}),
              HasSubstr("config: expected an MXLinearConfig"));
  EXPECT_THAT(message(x, weight, {}, MXLinearConfig{.block_size = 16}),
              HasSubstr("block_size: expected 32"));
}

}  // namespace
}  // namespace moe8
