// SPDX-License-Identifier: BSD-3-Clause
// Muon's update: near orthogonal, and what its formula says in float64.
#include "optim/muon.h"

#include <torch/torch.h>

#include <cmath>

#include "moe8/optimizer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::sqnr_db;

// The formula, matrix by matrix.
at::Tensor in_float64(const at::Tensor& x) {
  at::Tensor m = x.to(at::kDouble);
  m = m / (m.norm() + 1e-7);
  for (int i = 0; i < 5; ++i) {
    const at::Tensor square = m.mm(m.t());
    m = m * 3.4445 + (square * -4.7750 + square.mm(square) * 2.0315).mm(m);
  }
  return m;
}

TEST(Muon, SingularValuesComeNearOne) {
  at::manual_seed(1);
  for (const std::vector<int64_t>& sizes :
       {std::vector<int64_t>{48, 64}, {64, 48}, {3, 40, 96}, {3, 96, 40}}) {
    const at::Tensor update = orthogonalized(at::randn(sizes) * 1e-3);
    EXPECT_EQ(update.sizes(), at::IntArrayRef(sizes));
    const at::Tensor values = at::linalg_svdvals(update.to(at::kFloat));
    EXPECT_GT(values.min().item<double>(), 0.5) << sizes;
    EXPECT_LT(values.max().item<double>(), 1.3) << sizes;
  }
  EXPECT_EQ(orthogonalized(at::zeros({4, 5})).abs().max().item<double>(), 0);
}

TEST(Muon, EqualsTheFormulaInFloat64) {
  at::manual_seed(2);
  const at::Tensor x = at::randn({3, 32, 56});
  const at::Tensor update = orthogonalized(x), tall = orthogonalized(x.transpose(1, 2));
  for (int64_t e = 0; e < 3; ++e) {
    EXPECT_GT(sqnr_db(in_float64(x[e]), update[e]), 30);
    EXPECT_GT(sqnr_db(in_float64(x[e]), tall[e].t()), 30);
  }
}

// Matrices of one shape go through the products together, stacks beside single ones.
TEST(Muon, StepsEveryMatrixOfAModelByItself) {
  at::manual_seed(4);
  const std::vector<std::vector<int64_t>> shapes{{24, 40},    {40, 24}, {3, 24, 40}, {24, 40},
                                                 {2, 40, 24}, {1, 7},   {0, 24, 40}};
  const auto run = [&](at::ScalarType dtype, const std::vector<size_t>& which) {
    std::vector<OptimizedParameter> list;
    for (const size_t i : which) {
      at::manual_seed(10 + i);
      const at::Tensor w = at::randn(shapes[i]).to(dtype).requires_grad_();
      w.mutable_grad() = at::randn(shapes[i]).to(dtype);
      list.push_back({std::to_string(i), w, 0.1, UpdateRule::MUON});
    }
    Optimizer optimizer(list, {.max_grad_norm = 0});
    optimizer.set_learning_rate(0.01);
    optimizer.accumulate();
    optimizer.step();
    return list;
  };
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto together = run(dtype, {0, 1, 2, 3, 4, 5, 6});
    for (size_t i = 0; i < shapes.size(); ++i) {
      const at::Tensor alone = run(dtype, {i})[0].tensor.detach();
      EXPECT_TRUE(testing::same_bits(alone, together[i].tensor.detach())) << dtype << ", " << i;
    }
  }
}

TEST(Muon, LeavesEverythingWhereTheNormIsNotFinite) {
  at::manual_seed(5);
  const at::Tensor w = at::randn({4, 6}).requires_grad_(), before = w.detach().clone();
  Optimizer optimizer({{.name = "w", .tensor = w, .weight_decay = 0.1, .rule = UpdateRule::MUON}});
  optimizer.set_learning_rate(0.01);
  w.mutable_grad() = at::full({4, 6}, INFINITY);
  optimizer.clip_gradients();
  optimizer.step();
  EXPECT_TRUE(at::equal(w.detach(), before));
  EXPECT_EQ(optimizer.state()[0].second.abs().max().item<double>(), 0);
}

TEST(Muon, StepsAsItsHeaderSays) {
  at::manual_seed(3);
  at::Tensor w = at::randn({24, 40}).requires_grad_();
  const at::Tensor start = w.detach().to(at::kDouble);
  Optimizer optimizer({{.name = "w", .tensor = w, .weight_decay = 0.1, .rule = UpdateRule::MUON}},
                      {.momentum = 0.9, .max_grad_norm = 0});
  optimizer.set_learning_rate(0.01);
  at::Tensor momentum = at::zeros({24, 40}, at::kDouble), expected = start.clone();
  for (int step = 0; step < 3; ++step) {
    const at::Tensor grad = at::randn({24, 40});
    w.mutable_grad() = grad.clone();
    optimizer.clip_gradients();
    optimizer.step();
    momentum = momentum * 0.9 + grad;
    expected = expected * (1 - 0.01 * 0.1) -
               in_float64(grad + momentum * 0.9) * 0.01 * 0.2 * std::sqrt(40.0);
  }
  EXPECT_GT(sqnr_db(expected - start, w.detach().to(at::kDouble) - start), 30);
  EXPECT_LT((optimizer.state()[0].second - momentum).abs().max().item<double>(), 1e-6);
}

}  // namespace
}  // namespace moe8
