// SPDX-License-Identifier: BSD-3-Clause
// The optimizer on a GPU: the bits of a CPU, no change by a norm that is not finite, and a step that
// a CUDA graph replays.
#include "moe8/optimizer.h"

#include <torch/torch.h>

#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "cuda/graph.h"
#include "device/cuda_backend.h"
#include "gemm/observer.h"
#include "moe8/experts.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::same_bits;

class OptimizerOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
  }
};

const std::vector<std::vector<int64_t>> kShapes{{3, 40, 24}, {64, 72}, {33}, {1}, {200, 300}};

// Parameters of both kinds of sizes, and the optimizer that steps them.
struct Trained {
  Trained(const c10::Device& device, at::ScalarType dtype, const OptimizerOptions& options) {
    at::manual_seed(1);
    std::vector<OptimizedParameter> list;
    for (const auto& shape : kShapes) {
      parameters.push_back(at::randn(shape).to(dtype).to(device).requires_grad_());
      const double decay = shape.size() > 1 ? 0.1 : 0;
      list.push_back({std::to_string(list.size()), parameters.back(), decay});
    }
    optimizer.emplace(list, options);
  }

  // The gradients of a step are those of its number. Returns the norm.
  at::Tensor step(int number, int backwards, double first_gradient = 0) {
    at::manual_seed(static_cast<uint64_t>(number));
    for (int i = 0; i < backwards; ++i) {
      for (at::Tensor& p : parameters) {
        at::Tensor grad = at::randn(p.sizes()).to(p.scalar_type());
        if (first_gradient != 0) grad.view({-1})[0] = first_gradient;
        p.mutable_grad() = grad.to(p.device());
      }
      optimizer->accumulate();
    }
    optimizer->set_learning_rate(1e-2 / number);
    at::Tensor norm = optimizer->clip_gradients();
    optimizer->step();
    return norm;
  }

  std::vector<at::Tensor> parameters;
  std::optional<Optimizer> optimizer;
};

void expect_same(const Trained& a, const Trained& b, const std::string& what) {
  for (size_t i = 0; i < kShapes.size(); ++i) {
    EXPECT_TRUE(same_bits(a.parameters[i].detach().cpu(), b.parameters[i].detach().cpu()))
        << what << ", parameter " << i;
  }
  const auto x = a.optimizer->state(), y = b.optimizer->state();
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_TRUE(same_bits(x[i].second.cpu(), y[i].second.cpu())) << what << ", " << x[i].first;
  }
}

TEST_F(OptimizerOnGpu, StepsAsOnACpuBitForBit) {
  struct Case {
    at::ScalarType dtype;
    bool masters;
    MomentDtype moments;
    int backwards;
  };
  constexpr auto LIKE = MomentDtype::LIKE_WEIGHTS, BF16 = MomentDtype::BF16;
  for (const Case& c : {Case{at::kBFloat16, true, LIKE, 1},
                        {at::kBFloat16, true, BF16, 1},
                        {at::kBFloat16, true, LIKE, 3},
                        {at::kBFloat16, false, LIKE, 1},
                        {at::kFloat, true, LIKE, 1},
                        {at::kFloat, true, BF16, 1}}) {
    const OptimizerOptions options{.masters = c.masters, .moments = c.moments};
    Trained on_cpu(at::kCPU, c.dtype, options), on_gpu(at::kCUDA, c.dtype, options);
    for (int step = 1; step <= 5; ++step) {
      const at::Tensor expected = on_cpu.step(step, c.backwards);
      EXPECT_TRUE(same_bits(expected, on_gpu.step(step, c.backwards).cpu())) << step;
    }
    for (const double bad : {INFINITY, NAN}) {
      on_cpu.step(6, 1, bad);
      EXPECT_FALSE(std::isfinite(on_gpu.step(6, 1, bad).item<float>()));
    }
    expect_same(on_cpu, on_gpu, c10::str(c.dtype, " masters ", c.masters));
  }
}

// LibTorch's products round otherwise on a GPU: no bits, but the update itself.
TEST_F(OptimizerOnGpu, MuonStepsAsOnACpu) {
  const std::vector<std::vector<int64_t>> shapes{
      {3, 40, 24}, {64, 72}, {200, 300}, {5, 24, 40}, {64, 72}};
  for (const bool masters : {true, false}) {
    const auto run = [&](const c10::Device& device) {
      std::vector<OptimizedParameter> list;
      std::vector<at::Tensor> moved;
      at::manual_seed(7);
      for (const auto& shape : shapes) {
        const at::Tensor w = at::randn(shape).to(at::kBFloat16).to(device).requires_grad_();
        list.push_back({std::to_string(list.size()), w, 0.1, UpdateRule::MUON});
      }
      Optimizer optimizer(list, {.masters = masters});
      std::vector<at::Tensor> start;
      for (const at::Tensor& w : optimizer.stepped()) start.push_back(w.detach().cpu().clone());
      for (int step = 0; step < 4; ++step) {
        for (const OptimizedParameter& p : list) {
          p.tensor.mutable_grad() = at::randn(p.tensor.sizes()).to(at::kBFloat16).to(device);
          if (step == 3) p.tensor.mutable_grad().fill_(INFINITY);  // changes nothing
        }
        optimizer.accumulate();
        optimizer.set_learning_rate(0.02);
        optimizer.clip_gradients();
        optimizer.step();
      }
      for (size_t i = 0; i < start.size(); ++i) {
        moved.push_back(optimizer.stepped()[i].detach().cpu().to(at::kFloat) -
                        start[i].to(at::kFloat));
      }
      return moved;
    };
    const auto expected = run(at::kCPU), got = run(at::kCUDA);
    for (size_t i = 0; i < shapes.size(); ++i) {
      EXPECT_GT(testing::sqnr_db(expected[i], got[i]), masters ? 30 : 20) << masters << ", " << i;
    }
  }
}

// ---- gradients added by the products that compute them ------------------------------
// The gradients of a layer of experts for some batches, and the sums that were made of them.
struct AddedGradients {
  AddedGradients(const std::optional<Config>& config, int64_t experts, bool sums_in_products,
                 const std::vector<int>& batches) {
    at::manual_seed(5);
    const auto weight = [](at::IntArrayRef sizes) {
      return (at::randn(sizes) / 8).to(at::kBFloat16).to(at::kCUDA).requires_grad_();
    };
    weights = {weight({experts, 320, 128}), weight({experts, 320, 128}),
               weight({experts, 128, 320})};
    std::vector<OptimizedParameter> list;
    for (const at::Tensor& w : weights) list.push_back({std::to_string(list.size()), w});
    optimizer.emplace(list, OptimizerOptions{.sums_in_products = sums_in_products});
    for (const int batch : batches) {
      at::manual_seed(static_cast<uint64_t>(batch));
      const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kCUDA); };
      const at::Tensor x = random({kTokens, 128}).to(at::kBFloat16);
      const at::Tensor chosen = at::randint(experts, {kTokens, 2}, at::kLong).to(at::kCUDA);
      const at::Tensor out = moe_experts(x, weights[0], weights[1], weights[2], chosen,
                                         random({kTokens, 2}), {.config = config});
      (out.to(at::kFloat) * random({kTokens, 128})).sum().backward();
      for (const at::Tensor& w : weights) EXPECT_NE(w.grad().defined(), sums_in_products);
      optimizer->accumulate();
    }
  }

  at::Tensor sum(size_t i) const { return optimizer->stepped()[i].grad(); }

  static constexpr int64_t kTokens = 1500;
  std::vector<at::Tensor> weights;
  std::optional<Optimizer> optimizer;
};

struct Watching final : GemmObserver {
  Watching() { start(); }
  ~Watching() override { stop(); }
  void observe(const GemmProblem&, const at::Tensor&) override { ++seen; }
  std::atomic<int> seen{0};
};

// Few experts: products in slices.
TEST_F(OptimizerOnGpu, ProductsAddGradientsThatWereNotRounded) {
  const std::vector<std::optional<Config>> configs{std::nullopt, FP8GroupedMMConfig{},
                                                   MXFP8GroupedMMConfig{}};
  for (const std::optional<Config>& config : configs) {
    for (const int64_t experts : {2, 70}) {
      const std::string what = c10::str(config ? to_string(*config) : "bf16", ", ", experts);
      const AddedGradients all(config, experts, true, {1, 2, 3});
      const AddedGradients one(config, experts, true, {1}), two(config, experts, true, {2}),
          three(config, experts, true, {3}), rounded(config, experts, false, {1});
      std::optional<AddedGradients> observed;
      {
        Watching watching;
        observed.emplace(config, experts, true, std::vector<int>{1, 2, 3});
        EXPECT_GT(watching.seen, 0) << what;
      }
      for (size_t i = 0; i < 3; ++i) {
        const at::Tensor expected = one.sum(i) + two.sum(i) + three.sum(i);
        EXPECT_EQ(one.sum(i).scalar_type(), at::kFloat) << what;
        EXPECT_TRUE(same_bits(expected.cpu(), all.sum(i).cpu())) << what << ", " << i;
        EXPECT_TRUE(same_bits(expected.cpu(), observed->sum(i).cpu())) << what << ", " << i;
        EXPECT_TRUE(same_bits(rounded.sum(i).cpu(), one.sum(i).to(at::kBFloat16).cpu())) << what;
        EXPECT_FALSE(at::equal(one.sum(i), rounded.sum(i).to(at::kFloat))) << what;
      }
    }
  }
}

TEST_F(OptimizerOnGpu, AGraphReplaysAStepWithTheRateThatWasSet) {
  Trained once(at::kCUDA, at::kBFloat16, {}), replayed(at::kCUDA, at::kBFloat16, {});
  std::vector<at::Tensor> grads;
  for (const at::Tensor& p : once.parameters) grads.push_back(at::randn_like(p.detach()));
  const auto step = [&](Trained& trained) {
    for (size_t i = 0; i < grads.size(); ++i) trained.parameters[i].mutable_grad() = grads[i];
    trained.optimizer->clip_gradients();
    trained.optimizer->step();
  };
  replayed.optimizer->set_learning_rate(1e-2);
  torch::cuda::synchronize();
  const testing::Graph graph([&] { step(replayed); });  // steps once before it captures
  for (const double rate : {3e-3, 1e-3}) {
    replayed.optimizer->set_learning_rate(rate);
    torch::cuda::synchronize();
    graph.replay();
  }
  for (const double rate : {1e-2, 3e-3, 1e-3}) {
    once.optimizer->set_learning_rate(rate);
    step(once);
  }
  expect_same(once, replayed, "replayed");
}

}  // namespace
}  // namespace moe8
