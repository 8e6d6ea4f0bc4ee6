// SPDX-License-Identifier: BSD-3-Clause
// Parameters of every kind, on CPUs or GPUs, stepped by one process and by several.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "moe8/sharded_optimizer.h"
#include "testing/compare.h"

namespace moe8::testing {

inline constexpr int64_t kBatches = 4;  // of a step
inline constexpr int64_t kExperts = 4;

// Matrices that are cut, ones that are not, a vector, a scalar and a stack of experts.
struct ShardedModel {
  std::vector<std::string> names{"a", "b", "norm", "gain", "experts", "frozen"};
  std::vector<at::Tensor> tensors;

  explicit ShardedModel(at::ScalarType dtype, const at::Device& device = at::kCPU) {
    at::manual_seed(7);
    tensors = {at::randn({100, 1024}),         at::randn({6, 5}), at::ones({50}), at::ones({}),
               at::randn({kExperts, 64, 512}), at::ones({8})};
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors[i] = tensors[i].to(device, dtype).set_requires_grad(names[i] != "frozen");
    }
  }

  // The loss of one micro-batch; `first` and `count`: the experts that there are.
  at::Tensor loss(int64_t batch, int64_t first = 0, int64_t count = kExperts) const {
    at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(batch) + 1);
    at::Tensor sum = at::zeros({}, tensors[0].options().dtype(at::kFloat).requires_grad(false));
    for (size_t i = 0; i < 5; ++i) {
      const bool experts = names[i] == "experts";
      std::vector<int64_t> sizes = tensors[i].sizes().vec();
      if (experts) sizes[0] = kExperts;
      at::Tensor weight = at::randn(sizes, generator).to(tensors[i].options().requires_grad(false));
      if (experts) weight = weight.narrow(0, first, count);
      sum = sum + (tensors[i] * weight).sum().to(at::kFloat);
    }
    return sum / kBatches;
  }
};

inline OptimizedParameter parameter(const ShardedModel& model, size_t i, UpdateRule matrices) {
  return {.name = model.names[i],
          .tensor = model.tensors[i],
          .weight_decay = 0.1,
          .rule = model.tensors[i].dim() >= 2 ? matrices : UpdateRule::ADAMW};
}

inline std::vector<OptimizedParameter> whole(const ShardedModel& model, UpdateRule matrices) {
  std::vector<OptimizedParameter> list;
  for (size_t i = 0; i < model.tensors.size(); ++i) list.push_back(parameter(model, i, matrices));
  return list;
}

inline std::vector<ShardedParameter> shared(const ShardedModel& model, UpdateRule matrices) {
  std::vector<ShardedParameter> list;
  for (auto& one : whole(model, matrices)) list.push_back({.parameter = one});
  return list;
}

// Steps of one process, and of this rank with all others; the same bits after each.
inline void expect_same_steps(ShardedModel& one, ShardedModel& several, Optimizer& alone,
                              ShardedOptimizer& together, const Group& data, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t batch = 0; batch < kBatches; ++batch) {
      one.loss(step * kBatches + batch).backward();
      alone.accumulate();
    }
    for (int64_t round = 0; round < kBatches / data.size(); ++round) {
      several.loss(step * kBatches + round * data.size() + data.rank()).backward();
      together.accumulate();
    }
    const at::Tensor norm = alone.clip_gradients();
    EXPECT_TRUE(same_bits(norm, together.clip_gradients()));
    alone.set_learning_rate(1e-2);
    together.set_learning_rate(1e-2);
    alone.step();
    together.step();
    for (size_t i = 0; i < one.tensors.size(); ++i) {
      EXPECT_TRUE(same_bits(one.tensors[i].detach(), several.tensors[i].detach()))
          << one.names[i] << " after step " << step;
    }
  }
}

struct SteppedCase {
  UpdateRule matrices;
  at::ScalarType dtype;
  MomentDtype moments;
  bool overlap;
};

// Buckets of one parameter, in equal parts and in others, and of several.
inline void expect_steps_of_one_process(Parallel& p, const std::vector<SteppedCase>& cases) {
  for (const auto& [matrices, dtype, moments, overlap] : cases) {
    const OptimizerOptions options{.max_grad_norm = 0.5, .moments = moments};
    ShardedModel one(dtype, p.device()), several(dtype, p.device());
    Optimizer alone(whole(one, matrices), options);
    ShardedOptimizer together(shared(several, matrices), options, p.data(), {},
                              {.bucket_elements = 110'000, .overlap = overlap});
    expect_same_steps(one, several, alone, together, p.data(), 2);
  }
}

}  // namespace moe8::testing
