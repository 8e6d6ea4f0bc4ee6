// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/group_bias.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cummax.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/segment_reduce.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

namespace moe8 {
namespace {

constexpr int64_t kPieceRows = 256;

// int64 [E + 1]: the first row of each group and the end of the last. In order and within [0, rows]
// whatever offs hold: on a GPU nobody has checked them.
at::Tensor bounds_of(const TokenGroups& groups, int64_t rows, const at::Device& device) {
  if (!groups.offs()) return at::tensor({int64_t{0}, rows}, at::kLong).to(device, true);
  const at::Tensor ends = groups.offs()->to(at::kLong).clamp(0, rows);
  return at::constant_pad_nd(std::get<0>(ends.cummax(0)), {1, 0});
}

// [n, N]: the sum of the rows between each of n + 1 bounds and the next.
at::Tensor sums_between(const at::Tensor& x, const at::Tensor& bounds) {
  return at::segment_reduce(x, "sum", /*lengths=*/{}, /*indices=*/{}, bounds, /*axis=*/0,
                            /*unsafe=*/true);
}

}  // namespace

void add_group_bias(const at::Tensor& out, const at::Tensor& bias, const TokenGroups& groups) {
  if (out.numel() == 0 || bias.numel() == 0) return;
  const at::Tensor ends = bounds_of(groups, out.size(0), out.device()).slice(0, 1);
  const at::Tensor row = at::arange(out.size(0), ends.options());
  const at::Tensor group = at::searchsorted(ends, row, /*out_int32=*/false, /*right=*/true);
  // One row of zeros more, for the rows in no group.
  const at::Tensor rows_of_bias = at::constant_pad_nd(bias.to(out.scalar_type()), {0, 0, 0, 1});
  out.add_(rows_of_bias.index_select(0, group));
}

at::Tensor group_sums(const at::Tensor& x, const TokenGroups& groups) {
  const int64_t M = x.size(0), N = x.size(1);
  if (groups.count() == 0 || M == 0 || N == 0) {
    return at::zeros({groups.count(), N}, x.options().dtype(at::kFloat));
  }
  const at::Tensor bounds = bounds_of(groups, M, x.device());
  const at::Tensor every_piece = at::arange(0, M, kPieceRows, bounds.options());
  const at::Tensor cuts = std::get<0>(at::cat({every_piece, bounds}).sort());
  const at::Tensor pieces = sums_between(x.to(at::kFloat).contiguous(), cuts);
  return sums_between(pieces, at::searchsorted(cuts, bounds));
}

}  // namespace moe8
