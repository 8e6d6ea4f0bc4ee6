// SPDX-License-Identifier: BSD-3-Clause
// What a product saves for backward: the input, or the quantized form that its gradient reads.
#include <torch/torch.h>

#include "moe8/moe8.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::same_bits;

class SavedActivations : public ::testing::Test {
 protected:
  void TearDown() override { set_save_quantized_activations(true); }

  // float32, which every CPU multiplies by the float32 kernel: its forms are as large as the input.
  at::Tensor x_ = torch::randn({40, 64}).requires_grad_();
  at::Tensor W_ = torch::randn({3, 48, 64}).requires_grad_();
  at::Tensor offs_ = testing::offs_of({13, 0, 27});

  at::Tensor forward(const Config& config) {
    return quantize_then_scaled_grouped_mm(x_, W_.transpose(1, 2), offs_, config);
  }
  at::Tensor gradients(const at::Tensor& out) {
    x_.mutable_grad() = at::Tensor();
    W_.mutable_grad() = at::Tensor();
    out.square().sum().backward();
    return torch::cat({x_.grad().flatten(), W_.grad().flatten()});
  }
};

TEST_F(SavedActivations, GradientsAreTheSameBitsEitherWay) {
  for (const RecipeInfo& recipe : all_recipes()) {
    if (!is_grouped(recipe.config)) continue;
    set_save_quantized_activations(true);
    const at::Tensor quantized = gradients(forward(recipe.config));
    set_save_quantized_activations(false);
    EXPECT_TRUE(same_bits(gradients(forward(recipe.config)), quantized)) << recipe.name;
  }
}

TEST_F(SavedActivations, AQuantizedInputMayBeOverwritten) {
  const Config config = recipe("fp8_rowwise");
  const at::Tensor expected = gradients(forward(config));
  const at::Tensor out = forward(config);
  {
    const torch::NoGradGuard no_grad;
    x_.zero_();
  }
  EXPECT_TRUE(same_bits(expected, gradients(out)));
}

TEST_F(SavedActivations, ASavedInputMayNot) {
  set_save_quantized_activations(false);
  const at::Tensor out = forward(recipe("fp8_rowwise"));
  {
    const torch::NoGradGuard no_grad;
    x_.zero_();
  }
  EXPECT_THAT(error_of([&] { gradients(out); }), ::testing::HasSubstr("inplace operation"));
}

TEST_F(SavedActivations, HighPrecisionWeightGradientsSaveTheInputItself) {
  // wgrad_with_hp reads the input: a copy of it would cost memory and save nothing.
  const at::Tensor out = forward(recipe("mxfp8_rceil_wgrad_with_hp"));
  {
    const torch::NoGradGuard no_grad;
    x_.zero_();
  }
  EXPECT_THAT(error_of([&] { gradients(out); }), ::testing::HasSubstr("inplace operation"));
}

TEST_F(SavedActivations, BackwardMayRunTwice) {
  const at::Tensor out = forward(recipe("mxfp8_rceil"));
  const auto grad = [&] {
    return torch::autograd::grad({out}, {W_}, {torch::ones_like(out)}, /*retain_graph=*/true)[0];
  };
  const at::Tensor first = grad();
  EXPECT_TRUE(same_bits(first, grad()));
}

}  // namespace
}  // namespace moe8
