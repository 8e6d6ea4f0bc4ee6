// SPDX-License-Identifier: BSD-3-Clause
// By LibTorch's operations, on every device: what the kernels of cuda_take.cpp are held to.
#include "numerics/take.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <tuple>

#include "numerics/sample_memory.h"

namespace moe8 {

int64_t count_of(const Picks& picks) {
  int64_t count = 0;
  for (const PickedRun& run : picks) count += run.count;
  return count;
}

Picks spaced(int64_t size, int64_t count) {
  return {{0, size, std::min(size, count)}};
}

std::vector<int64_t> indices_of(const Picks& picks, double phase) {
  std::vector<int64_t> indices;
  for (const PickedRun& run : picks) {
    for (int64_t i = 0; i < run.count; ++i) indices.push_back(picked_index(run, i, phase));
  }
  return indices;
}

void take_parts(const std::vector<TensorPart>& parts, double phase) {
  if (cuda_take_parts(parts, phase)) return;
  for (const TensorPart& part : parts) {
    at::Tensor x = part.from;
    for (size_t axis = 0; axis < part.axes.size(); ++axis) {
      const Picks& picks = part.axes[axis];
      const auto dim = static_cast<int64_t>(axis);
      const bool is_whole = picks.size() == 1 && picks[0].count == x.size(dim);
      if (is_whole) continue;
      const at::Tensor indices = at::tensor(indices_of(picks, phase), at::kLong);
      x = at::index_select(x, dim, indices.to(x.device()));
    }
    part.to.copy_(x);
  }
}

at::Tensor largest_magnitudes(const at::Tensor& x, SampleMemory& memory) {
  if (const std::optional<at::Tensor> parts = cuda_largest_magnitudes(x, memory)) return *parts;
  const auto [least, most] = at::aminmax(x);
  return memory.allot(x.device(), {1}, at::kFloat).copy_(at::maximum(least.abs(), most.abs()));
}

at::Tensor products_of_rows(const at::Tensor& left, const at::Tensor& right, const Picks& groups,
                            SampleMemory& memory) {
  if (const auto products = cuda_products_of_rows(left, right, groups, memory)) return *products;
  const int64_t count = static_cast<int64_t>(groups.size());
  at::Tensor out =
      memory.allot(left.device(), {count, 1, left.size(1), right.size(1)}, at::kDouble);
  const at::Tensor wide_left = left.to(at::kDouble), wide_right = right.to(at::kDouble);
  for (int64_t g = 0; g < count; ++g) {
    const PickedRun& group = groups[static_cast<size_t>(g)];
    out[g][0].copy_(at::matmul(wide_left.narrow(0, group.begin, group.size).t(),
                               wide_right.narrow(0, group.begin, group.size)));
  }
  return out;
}

}  // namespace moe8
