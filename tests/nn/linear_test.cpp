// SPDX-License-Identifier: BSD-3-Clause
// The model's products against float64, whatever the CPU multiplies by itself; converted weights.
#include "nn/linear.h"

#include <torch/torch.h>

#include "moe8/moe8.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

struct Results {
  at::Tensor out, grad_x, grad_weight;
};

Results results(const at::Tensor& x, torch::nn::Linear& module, const at::Tensor& upstream) {
  const at::Tensor input = x.detach().clone().requires_grad_();
  module->weight.mutable_grad().reset();
  const at::Tensor out = linear(input, module);
  out.backward(upstream);
  return {out.detach(), input.grad(), module->weight.grad()};
}

torch::nn::Linear linear_of(int64_t in, int64_t out, at::ScalarType dtype) {
  torch::nn::Linear module(torch::nn::LinearOptions(in, out).bias(false));
  module->to(dtype);
  return module;
}

// Half a unit in the last place of bf16 is 54 dB on average; float32 sums add nothing visible.
TEST(ModelLinear, IsRoundedOnce) {
  torch::manual_seed(1);
  const at::Tensor x = at::randn({2, 33, 40}).to(at::kBFloat16);
  const at::Tensor upstream = at::randn({2, 33, 24}).to(at::kBFloat16);
  torch::nn::Linear module = linear_of(40, 24, at::kBFloat16);
  const Results got = results(x, module, upstream);
  const at::Tensor rows = x.to(at::kDouble), weight = module->weight.detach().to(at::kDouble),
                   grads = upstream.to(at::kDouble);
  const auto expect_close = [](const at::Tensor& exact, const at::Tensor& value) {
    EXPECT_EQ(value.scalar_type(), at::kBFloat16);
    EXPECT_EQ(value.sizes(), exact.sizes());
    EXPECT_GE(testing::sqnr_db(exact, value), 52);
  };
  expect_close(at::matmul(rows, weight.t()), got.out);
  expect_close(at::matmul(grads, weight), got.grad_x);
  expect_close(at::matmul(grads.flatten(0, 1).t(), rows.flatten(0, 1)), got.grad_weight);
}

TEST(ModelLinear, OtherDtypesAndConvertedWeightsAreForward) {
  torch::manual_seed(2);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({64, 64}).to(dtype), upstream = at::randn({64, 32}).to(dtype);
    torch::nn::Linear module = linear_of(64, 32, dtype);
    if (dtype == at::kBFloat16) quantize_(*module, {{"weight", recipe("rowwise")}});
    const Results got = results(x, module, upstream);
    const at::Tensor input = x.detach().clone().requires_grad_();
    module->weight.mutable_grad().reset();
    const at::Tensor out = module->forward(input);
    out.backward(upstream);
    EXPECT_TRUE(testing::same_bits(out.detach(), got.out));
    EXPECT_TRUE(testing::same_bits(input.grad(), got.grad_x));
    EXPECT_TRUE(testing::same_bits(module->weight.grad(), got.grad_weight));
  }
}

TEST(ModelLinear, NoGradientsWhereNoneAreAsked) {
  torch::nn::Linear module = linear_of(8, 8, at::kBFloat16);
  module->weight.requires_grad_(false);
  const at::Tensor x = at::ones({3, 8}, at::kBFloat16).requires_grad_();
  linear(x, module).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(module->weight.grad().defined());
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(linear(x, module).requires_grad());
  EXPECT_EQ(linear(at::empty({0, 8}, at::kBFloat16), module).sizes(), at::IntArrayRef({0, 8}));
}

}  // namespace
}  // namespace moe8
