// SPDX-License-Identifier: BSD-3-Clause
#include "ops/products.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/arange.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "autograd/low_precision_mm.h"
#include "base/check.h"

namespace moe8 {
namespace {

using Axes = std::vector<int64_t>;

// Of x as a matrix. (Not from numel(): that says nothing of rows without elements.)
int64_t rows_of(const at::Tensor& x) {
  int64_t rows = 1;
  for (const int64_t size : x.sizes().slice(0, x.dim() - 1)) rows *= size;
  return rows;
}

at::Tensor with_rank(const at::Tensor& x, int64_t rank) {
  Axes sizes(rank - x.dim(), 1);
  sizes.insert(sizes.end(), x.sizes().begin(), x.sizes().end());
  return x.expand(sizes);
}

at::Tensor without_repeats(at::Tensor weight) {
  for (int64_t axis = 0; axis < weight.dim() - 2; ++axis) {
    if (weight.stride(axis) == 0 && weight.size(axis) > 1) weight = weight.narrow(axis, 0, 1);
  }
  return weight;
}

Axes sizes_at(const at::Tensor& x, const Axes& axes) {
  Axes sizes;
  for (const int64_t axis : axes) sizes.push_back(x.size(axis));
  return sizes;
}

int64_t product_of(const Axes& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

Axes inverse(const Axes& order) {
  Axes inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int64_t>(i);
  return inverse;
}

// End rows of groups that have `rows` > 0 rows each.
at::Tensor equal_offs(int64_t groups, int64_t rows, const at::Device& device) {
  MOE8_CHECK(groups <= std::numeric_limits<int32_t>::max() / rows, "matmul", "x",
             "expected fewer than 2^31 rows in all, got ", groups, " x ", rows);
  return at::arange(rows, groups * rows + 1, rows, at::TensorOptions(at::kInt).device(device));
}

}  // namespace

at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const Config& config,
                          at::ScalarType out_dtype) {
  // A matrix as it is: views cost nodes of the graph, which a small layer feels.
  const at::Tensor rows = x.dim() == 2 ? x : x.reshape({rows_of(x), weight.size(1)});
  const at::Tensor y = low_precision_mm(rows, weight.unsqueeze(0), std::nullopt,
                                        training_formats(config), out_dtype);
  if (x.dim() == 2) return y;
  Axes sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  // As LibTorch's matmul: not a view, so that `y += bias` by the caller costs no extra graph node.
  return at::_unsafe_view(y, sizes);
}

at::Tensor matmul_product(const at::Tensor& x, const at::Tensor& weight, const Config& config,
                          at::ScalarType out_dtype) {
  const int64_t rank = std::max(x.dim(), weight.dim());
  const at::Tensor W = without_repeats(with_rank(weight, rank));
  Axes groups, order;  // batch axes along which W has other matrices; those axes first
  Axes x_sizes = with_rank(x, rank).sizes().vec();
  for (int64_t axis = 0; axis < rank - 2; ++axis) {
    if (W.size(axis) == 1) continue;
    groups.push_back(axis);
    x_sizes[axis] = W.size(axis);
  }
  const at::Tensor X = x.expand(x_sizes);
  const int64_t K = W.size(-2), N = W.size(-1);
  if (groups.empty()) return linear_product(X, W.reshape({K, N}).t(), config, out_dtype);

  order = groups;
  for (int64_t axis = 0; axis < rank; ++axis) {
    if (axis >= rank - 2 || W.size(axis) == 1) order.push_back(axis);
  }
  const int64_t E = product_of(sizes_at(W, groups));
  const int64_t M = rows_of(X);
  const at::Tensor A = X.permute(order).reshape({M, K});
  const at::Tensor B = W.permute(order).reshape({E, K, N});
  const at::Tensor y = low_precision_mm(A, B.transpose(1, 2), equal_offs(E, M / E, A.device()),
                                        training_formats(config), out_dtype);
  x_sizes.back() = N;
  Axes y_sizes;
  for (const int64_t axis : order) y_sizes.push_back(x_sizes[axis]);
  return at::_unsafe_view(y, y_sizes).permute(inverse(order)).contiguous();
}

}  // namespace moe8
