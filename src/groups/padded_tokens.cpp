// SPDX-License-Identifier: BSD-3-Clause
#include "groups/padded_tokens.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>

namespace moe8 {
namespace {

// [E] values, each moved to the group after; 0 for the first.
at::Tensor shifted(const at::Tensor& values) {
  return at::constant_pad_nd(values, {1, -1});
}

// The first index whose end lies past a row.
at::Tensor group_of(const at::Tensor& ends, const at::Tensor& rows) {
  return at::searchsorted(ends, rows, /*out_int32=*/false, /*right=*/true);
}

at::Tensor zeroed_unless(const at::Tensor& keep, const at::Tensor& rows) {
  return at::where(keep.unsqueeze(1), rows, at::zeros({}, rows.options()));
}

}  // namespace

PaddedTokens pad_tokens(const at::Tensor& offs, int64_t tokens, int64_t padding, int64_t rows) {
  const int64_t groups = offs.numel();
  const auto options = at::TensorOptions().dtype(at::kLong).device(offs.device());
  const at::Tensor ends = clamped_ends(offs, tokens);
  const at::Tensor begins = shifted(ends);
  const at::Tensor sizes = ends - begins;
  const at::Tensor padded_ends =
      sizes.add(padding - 1).div(padding, "floor").mul(padding).cumsum(0);
  const at::Tensor padded_begins = shifted(padded_ends);
  PaddedTokens result;
  result.ends = padded_ends.to(at::kInt);

  const at::Tensor padded = at::arange(rows, options);
  at::Tensor group = group_of(padded_ends, padded);
  at::Tensor inside = group.clamp_max(groups - 1);
  const at::Tensor in_group = padded - padded_begins.index_select(0, inside);
  result.is_token = group.lt(groups).logical_and(in_group.lt(sizes.index_select(0, inside)));
  result.source = begins.index_select(0, inside).add(in_group).mul(result.is_token);

  const at::Tensor token = at::arange(tokens, options);
  group = group_of(ends, token);
  inside = group.clamp_max(groups - 1);
  result.has_group = group.lt(groups);
  result.position = token.sub(begins.index_select(0, inside))
                        .add(padded_begins.index_select(0, inside))
                        .mul(result.has_group);
  return result;
}

int64_t padded_row_bound(int64_t tokens, int64_t groups, int64_t padding) {
  return (tokens + (padding - 1) * groups) / padding * padding;
}

at::Tensor to_padded(const at::Tensor& x, const PaddedTokens& tokens) {
  if (x.size(0) == 0) return at::zeros({tokens.source.numel(), x.size(1)}, x.options());
  return zeroed_unless(tokens.is_token, x.index_select(0, tokens.source));
}

at::Tensor from_padded(const at::Tensor& padded, const PaddedTokens& tokens) {
  if (padded.size(0) == 0)
    return at::zeros({tokens.position.numel(), padded.size(1)}, padded.options());
  return zeroed_unless(tokens.has_group, padded.index_select(0, tokens.position));
}

at::Tensor clamped_ends(const at::Tensor& offs, int64_t rows) {
  return std::get<0>(offs.to(at::kLong).clamp(0, rows).cummax(0));
}

at::Tensor group_of_rows(const at::Tensor& offs, int64_t rows) {
  const at::Tensor row = at::arange(rows, offs.options().dtype(at::kLong));
  return offs.numel() == 0 ? at::zeros_like(row) : group_of(clamped_ends(offs, rows), row);
}

}  // namespace moe8
