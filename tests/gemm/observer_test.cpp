// SPDX-License-Identifier: BSD-3-Clause
// Listeners see every product of a converted weight, with its owner, and only while they listen.
#include "gemm/observer.h"

#include <torch/torch.h>

#include <mutex>
#include <vector>

#include "gemm/low_precision_gemm.h"
#include "moe8/grouped_mm.h"
#include "moe8/quantize_model.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::offs_of;
using testing::same_bits;

struct Seen {
  Gemm gemm;
  WeightId weight;
  at::Tensor result;
};

class Recorder final : public GemmObserver {
 public:
  Recorder() { start(); }
  ~Recorder() override { stop(); }
  void observe(const GemmProblem& problem, const at::Tensor& result) override {
    const std::lock_guard lock(mutex_);
    seen.push_back({problem.gemm, problem.weight, result});
  }
  std::vector<Seen> seen;

 private:
  std::mutex mutex_;
};

torch::nn::Linear converted_linear() {
  torch::nn::Linear linear(torch::nn::LinearOptions(64, 32).bias(false));
  quantize_(*linear, recipe("mxfp8_emulated"));
  return linear;
}

TEST(Observer, SeesThreeProductsOfALinearAndWhoseTheyAre) {
  auto linear = converted_linear();
  const at::Tensor x = torch::randn({8, 64}).requires_grad_();
  EXPECT_FALSE(numerics_observed());
  linear(x);
  Recorder recorder;
  EXPECT_TRUE(numerics_observed());
  const at::Tensor y = linear(x);
  y.sum().backward();
  ASSERT_EQ(recorder.seen.size(), 3u);
  // A backward computes grad_weight first: autograd/low_precision_mm.cpp says why.
  const Gemm expected[] = {Gemm::OUT, Gemm::GRAD_WEIGHT, Gemm::GRAD_INPUT};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(recorder.seen[i].gemm, expected[i]);
    EXPECT_EQ(recorder.seen[i].weight, weight_id(linear->weight));
  }
  EXPECT_TRUE(same_bits(recorder.seen[0].result, y.detach()));
  EXPECT_EQ(weight_id(linear->weight).tags.size(), 1u);
  EXPECT_EQ(weight_id(linear->weight).impl, linear->weight.unsafeGetTensorImpl());
}

TEST(Observer, WatchingChangesNoBit) {
  auto linear = converted_linear();
  const at::Tensor x = torch::randn({8, 64}).requires_grad_();
  const auto run = [&] {
    linear->zero_grad();
    x.mutable_grad().reset();
    const at::Tensor y = linear(x);
    y.square().sum().backward();
    return std::vector{y.detach(), x.grad(), linear->weight.grad().clone()};
  };
  const auto plain = run();
  const Recorder recorder;
  const auto watched = run();
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(same_bits(plain[i], watched[i]));
}

TEST(Observer, CopiesOfAWeightBelongToIt) {
  auto linear = converted_linear();
  const WeightId id = weight_id(linear->weight);
  EXPECT_EQ(weight_id(linear->weight.t()), id);
  EXPECT_EQ(weight_id(linear->weight.unsqueeze(0)), id);
  EXPECT_EQ(weight_id(linear->weight.to(at::kBFloat16)).tags, id.tags);
  EXPECT_NE(weight_id(converted_linear()->weight).tags, id.tags);
  const at::Tensor plain = torch::ones({2, 3});
  EXPECT_EQ(weight_id(plain.t()), (WeightId{{}, plain.unsafeGetTensorImpl()}));
}

TEST(Observer, SeesFunctionsCalledDirectlyAndSeveralListenersSeeTheSame) {
  const at::Tensor A = torch::randn({40, 64}), W = torch::randn({2, 32, 64}).requires_grad_();
  const Recorder one;
  {
    const Recorder two;
    quantize_then_scaled_grouped_mm(A, W.transpose(-2, -1), offs_of({20, 20}),
                                    recipe("fp8_rowwise"))
        .sum()
        .backward();
    EXPECT_EQ(two.seen.size(), 2u);  // A needs no gradient
  }
  ASSERT_EQ(one.seen.size(), 2u);
  EXPECT_EQ(one.seen[1].gemm, Gemm::GRAD_WEIGHT);
  EXPECT_EQ(one.seen[1].weight.impl, W.unsafeGetTensorImpl());
  EXPECT_TRUE(numerics_observed());
}

}  // namespace
}  // namespace moe8
