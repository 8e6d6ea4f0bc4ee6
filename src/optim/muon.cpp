// SPDX-License-Identifier: BSD-3-Clause
#include "optim/muon.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>

namespace moe8 {
namespace {

// The quintic of Keller Jordan: steep at 0, so that five steps are enough.
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
constexpr int kSteps = 5;

}  // namespace

at::Tensor orthogonalized(const at::Tensor& x) {
  const int64_t rows = x.size(-2), columns = x.size(-1);
  at::Tensor m = x.reshape({-1, rows, columns}).to(at::kFloat);
  if (m.numel() == 0) return x.to(at::kFloat);
  const at::Tensor norm = at::linalg_vector_norm(m, 2, {1, 2}, /*keepdim=*/true);
  m = (m / (norm + 1e-7)).to(at::kBFloat16);
  if (rows > columns) m = m.transpose(1, 2).contiguous();  // the smaller side is squared
  for (int i = 0; i < kSteps; ++i) {
    const at::Tensor square = at::bmm(m, m.transpose(1, 2));
    const at::Tensor polynomial = at::baddbmm(square, square, square, kB, kC);
    m = at::baddbmm(m, polynomial, m, kA, 1);
  }
  if (rows > columns) m = m.transpose(1, 2);
  return m.to(at::kFloat).reshape(x.sizes());
}

void muon_step(const MuonItem& item, double momentum, double max_norm,
               const at::Tensor& learning_rate, const at::Tensor& norm) {
  at::Tensor grad = item.grad.to(at::kFloat);
  if (norm.defined()) grad = grad * (max_norm / (norm + 1e-6)).clamp_max(1.0);
  const at::Tensor sum = item.momentum.to(at::kFloat) * momentum + grad;
  const at::Tensor direction = orthogonalized(grad + sum * momentum);
  const auto longer = static_cast<double>(std::max(item.weight.size(-2), item.weight.size(-1)));
  const at::Tensor rate = learning_rate.to(at::kFloat);
  const at::Tensor next = item.weight.to(at::kFloat) * (1 - rate * item.weight_decay) -
                          direction * (rate * (0.2 * std::sqrt(longer)));
  const auto assign = [&](const at::Tensor& to, const at::Tensor& value) {
    const at::Tensor rounded = value.to(to.scalar_type());
    to.copy_(norm.defined() ? at::where(norm.isfinite(), rounded, to) : rounded);
  };
  assign(item.momentum, sum);
  assign(item.weight, next);
  if (item.copy.defined()) item.copy.copy_(item.weight);
}

}  // namespace moe8
