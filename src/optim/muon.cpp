// SPDX-License-Identifier: BSD-3-Clause
#include "optim/muon.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "optim/engine.h"

namespace moe8 {
namespace {

// The quintic of Keller Jordan: steep at 0, so that five steps are enough.
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
constexpr int kSteps = 5;

constexpr int64_t kAtOnce = int64_t{1} << 27;  // elements whose directions are held

// m (matrices, rows, columns) in bf16, which it may overwrite.
at::Tensor orthogonalize(at::Tensor m) {
  if (m.numel() == 0) return m;
  m.div_(at::linalg_vector_norm(m, 2, {1, 2}, /*keepdim=*/true, at::kFloat) + 1e-7);
  const bool is_tall = m.size(1) > m.size(2);
  for (int i = 0; i < kSteps; ++i) {
    const at::Tensor transposed = m.transpose(1, 2);
    const at::Tensor square = is_tall ? at::bmm(transposed, m) : at::bmm(m, transposed);
    const at::Tensor polynomial = at::baddbmm(square, square, square, kB, kC);
    m = is_tall ? at::baddbmm(m, m, polynomial, kA, 1) : at::baddbmm(m, polynomial, m, kA, 1);
  }
  return m;
}

// Of one shape of matrix.
void step_together(OptimEngine& engine, const MuonRule& rule, const std::vector<MuonItem>& items,
                   const at::Tensor& norm) {
  const int64_t rows = items.front().weight.size(-2), columns = items.front().weight.size(-1);
  int64_t elements = 0;
  for (const MuonItem& item : items) elements += item.weight.numel();
  if (elements == 0) return;
  const at::Tensor& like = items.front().weight;
  const auto parts_of = [&](const at::Tensor& all) {
    std::vector<at::Tensor> parts;
    int64_t at = 0;
    for (const MuonItem& item : items) {
      parts.push_back(all.flatten().narrow(0, at, item.weight.numel()).view(item.weight.sizes()));
      at += item.weight.numel();
    }
    return parts;
  };
  at::Tensor all = at::empty({elements / (rows * columns), rows, columns},
                             at::TensorOptions(like.device()).dtype(at::kBFloat16));
  engine.muon_directions(rule, items, parts_of(all), norm);
  all = orthogonalize(std::move(all));
  engine.muon_weights(items, parts_of(all), norm);
}

}  // namespace

double muon_scale(const at::Tensor& weight) {
  return 0.2 * std::sqrt(static_cast<double>(std::max(weight.size(-2), weight.size(-1))));
}

at::Tensor orthogonalized(const at::Tensor& x) {
  const at::Tensor copy = x.reshape({-1, x.size(-2), x.size(-1)}).to(at::kBFloat16, false, true);
  return orthogonalize(copy.contiguous()).view(x.sizes());
}

void muon_step(OptimEngine& engine, const MuonRule& rule, const std::vector<MuonItem>& items,
               const at::Tensor& norm) {
  std::map<std::pair<int64_t, int64_t>, std::vector<MuonItem>> by_shape;
  for (const MuonItem& item : items) {
    by_shape[{item.weight.size(-2), item.weight.size(-1)}].push_back(item);
  }
  for (const auto& [shape, all] : by_shape) {
    std::vector<MuonItem> together;
    int64_t elements = 0;
    for (const MuonItem& item : all) {
      if (!together.empty() && elements + item.weight.numel() > kAtOnce) {
        step_together(engine, rule, together, norm);
        together.clear();
        elements = 0;
      }
      together.push_back(item);
      elements += item.weight.numel();
    }
    step_together(engine, rule, together, norm);
  }
}

}  // namespace moe8
