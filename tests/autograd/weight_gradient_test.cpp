// SPDX-License-Identifier: BSD-3-Clause
// Gradients that the products of experts add to float32 sums: the bits of adding them up afterwards,
// and where they are returned as ever. What a GPU adds without rounding: tests/cuda/ops_test.cpp.
#include "autograd/weight_gradient.h"

#include <torch/torch.h>

#include <optional>
#include <string>
#include <vector>

#include "moe8/experts.h"
#include "moe8/optimizer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::same_bits;

constexpr int64_t kTokens = 40, kDim = 64, kHidden = 96, kExperts = 3, kTopK = 2;

// A layer of experts and what steps its weights.
struct SteppedLayer {
  SteppedLayer(std::optional<Config> with, bool sums_in_products, double max_grad_norm = 1)
      : config(std::move(with)) {
    at::manual_seed(11);
    const auto weight = [](at::IntArrayRef sizes) {
      return (at::randn(sizes) / 8).to(at::kBFloat16).requires_grad_();
    };
    weights = {weight({kExperts, kHidden, kDim}), weight({kExperts, kHidden, kDim}),
               weight({kExperts, kDim, kHidden})};
    std::vector<OptimizedParameter> list;
    for (const at::Tensor& w : weights) list.push_back({std::to_string(list.size()), w});
    optimizer.emplace(list, OptimizerOptions{.max_grad_norm = max_grad_norm,
                                             .sums_in_products = sums_in_products});
    optimizer->set_learning_rate(0.01);
  }

  at::Tensor loss(int number, ExpertsImplementation which = ExpertsImplementation::FUSED) const {
    at::manual_seed(static_cast<uint64_t>(number));
    const at::Tensor x = at::randn({kTokens, kDim}).to(at::kBFloat16);
    const at::Tensor experts = at::randint(kExperts, {kTokens, kTopK}, at::kLong);
    const at::Tensor scores = at::rand({kTokens, kTopK});
    const at::Tensor out = moe_experts(x, weights[0], weights[1], weights[2], experts, scores,
                                       {.config = config, .implementation = which});
    return (out.to(at::kFloat) * at::randn({kTokens, kDim})).sum();
  }

  std::optional<Config> config;
  std::vector<at::Tensor> weights;
  std::optional<Optimizer> optimizer;
};

const std::vector<std::optional<Config>>& configs() {
  static const std::vector<std::optional<Config>> list{std::nullopt, FP8GroupedMMConfig{},
                                                       MXFP8GroupedMMConfig{}};
  return list;
}

void expect_same_sums(const SteppedLayer& a, const SteppedLayer& b, const std::string& what) {
  for (size_t i = 0; i < a.weights.size(); ++i) {
    const at::Tensor &x = a.optimizer->stepped()[i].grad(), &y = b.optimizer->stepped()[i].grad();
    ASSERT_TRUE(x.defined() && y.defined()) << what;
    EXPECT_TRUE(same_bits(x.to(at::kFloat), y)) << what << ", weight " << i;
  }
}

// A batch of both, whose sums are the same afterwards.
void add_batch(SteppedLayer& after, SteppedLayer& inside, int batch, const std::string& what) {
  for (SteppedLayer* layer : {&after, &inside}) layer->loss(batch).backward();
  for (const at::Tensor& w : inside.weights) EXPECT_FALSE(w.grad().defined()) << what;
  for (SteppedLayer* layer : {&after, &inside}) layer->optimizer->accumulate();
  expect_same_sums(after, inside, what);
}

TEST(WeightGradient, SumsInProductsHaveTheBitsOfAddingUpAfterwards) {
  for (const std::optional<Config>& config : configs()) {
    SteppedLayer after(config, false), inside(config, true);
    const std::string name = config ? to_string(*config) : "bf16";
    for (int step = 0; step < 2; ++step) {
      for (int batch = 0; batch < 3; ++batch) {
        add_batch(after, inside, 9 * step + batch, c10::str(name, " ", batch));
      }
      EXPECT_TRUE(same_bits(after.optimizer->clip_gradients(), inside.optimizer->clip_gradients()));
      for (SteppedLayer* layer : {&after, &inside}) layer->optimizer->step();
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_FALSE(inside.optimizer->stepped()[i].grad().defined());
        EXPECT_TRUE(same_bits(after.weights[i].detach(), inside.weights[i].detach()));
      }
    }
  }
}

// A kept graph adds once more; operation by operation gradients come by way of grad().
TEST(WeightGradient, EveryWayOfBackwardIsAddedUp) {
  SteppedLayer after(std::nullopt, false), inside(std::nullopt, true);
  for (SteppedLayer* layer : {&after, &inside}) {
    const at::Tensor loss = layer->loss(1);
    loss.backward({}, /*retain_graph=*/true);
    layer->optimizer->accumulate();
    loss.backward();
    layer->optimizer->accumulate();
    layer->loss(2, ExpertsImplementation::UNFUSED).backward();
    EXPECT_TRUE(layer->weights[0].grad().defined());
    layer->optimizer->accumulate();
    EXPECT_FALSE(layer->weights[0].grad().defined());
  }
  expect_same_sums(after, inside, "three ways");
}

TEST(WeightGradient, WhoeverAsksForGradientsGetsThem) {
  SteppedLayer layer(std::nullopt, true);
  layer.loss(1).backward();
  const at::Tensor sum = layer.optimizer->stepped()[2].grad().clone();
  const auto asked = torch::autograd::grad({layer.loss(1)}, {layer.weights[2]});
  EXPECT_TRUE(same_bits(asked[0].to(at::kFloat), sum));
  const auto again = torch::autograd::grad({layer.loss(1)}, {layer.weights[2]}, {}, std::nullopt,
                                           /*create_graph=*/true);
  EXPECT_TRUE(same_bits(again[0].detach().to(at::kFloat), sum));
  EXPECT_TRUE(same_bits(layer.optimizer->stepped()[2].grad(), sum));
  const at::Tensor forward = layer.loss(1);
  layer.optimizer.reset();  // nobody adds up any more
  forward.backward();
  EXPECT_TRUE(same_bits(layer.weights[2].grad().to(at::kFloat), sum));
}

TEST(WeightGradient, ANormOfFewerGradientsIsForgotten) {
  SteppedLayer after(std::nullopt, false, 1e-6), inside(std::nullopt, true, 1e-6);
  for (SteppedLayer* layer : {&after, &inside}) {
    layer->loss(1).backward();
    layer->optimizer->accumulate();
    layer->optimizer->clip_gradients();
    layer->loss(2).backward();
    layer->optimizer->step();  // not clipped: it had no norm of these
  }
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same_bits(after.weights[i].detach(), inside.weights[i].detach()));
  }
}

}  // namespace
}  // namespace moe8
