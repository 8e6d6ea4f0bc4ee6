// SPDX-License-Identifier: BSD-3-Clause
// Scales to and from the layout of block-scaled tensor cores. All of it is one permutation of
// [row tile, 4 x 32 rows, column tile, 4 columns], applied to each group by itself.
#include "moe8/blocked_scales.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "base/check.h"
#include "device/implementation.h"
#include "formats/integers.h"
#include "groups/padded_tokens.h"
#include "quantize/check_input.h"
#include "quantize/cuda_quantize.h"

namespace moe8 {
namespace {

constexpr int64_t kTileRows = 128;
constexpr int64_t kTileCols = 4;

void check_scale(const char* op, const char* argument, const at::Tensor& scale, int64_t dim) {
  check_holds_its_values(op, argument, scale);
  MOE8_CHECK(scale.dim() == dim &&
                 (scale.scalar_type() == at::kByte || scale.scalar_type() == at::kFloat8_e8m0fnu),
             op, argument, "expected ", dim, "-D uint8 or float8_e8m0fnu, got ", describe(scale));
}

// [R, C] bytes -> round_up(R, 128) x round_up(C, 4) bytes in tile order, flat.
at::Tensor block(const at::Tensor& bytes) {
  const int64_t rows = round_up(bytes.size(0), kTileRows);
  const int64_t cols = round_up(bytes.size(1), kTileCols);
  const at::Tensor padded =
      at::constant_pad_nd(bytes, {0, cols - bytes.size(1), 0, rows - bytes.size(0)});
  // row = (tile, quarter, r), column = (tile, c); a tile holds [r][quarter][c].
  return padded.reshape({rows / kTileRows, 4, 32, cols / kTileCols, kTileCols})
      .permute({0, 3, 2, 1, 4})
      .reshape({-1});
}

at::Tensor unblock(const at::Tensor& flat, int64_t rows, int64_t cols) {
  const int64_t row_tiles = round_up(rows, kTileRows) / kTileRows;
  const int64_t col_tiles = round_up(cols, kTileCols) / kTileCols;
  return flat.reshape({row_tiles, col_tiles, 32, 4, kTileCols})
      .permute({0, 3, 2, 1, 4})
      .reshape({row_tiles * kTileRows, col_tiles * kTileCols})
      .narrow(0, 0, rows)
      .narrow(1, 0, cols)
      .contiguous();
}

at::Tensor bytes_of(const at::Tensor& scale) {
  return scale.contiguous().view(at::kByte);
}

/// Where each group starts in the source and, padded, in the result.
struct Groups {
  std::vector<int64_t> begin;  // [E + 1]
  std::vector<int64_t> start;  // [E + 1]
};

Groups groups_of(const char* op, const at::Tensor& offs, int64_t length, int64_t multiple) {
  check_offs(op, offs, -1, length, offs.device());
  const at::Tensor ends = offs.cpu().contiguous();  // of a GPU's: the host waits
  Groups groups{{0}, {0}};
  for (int64_t g = 0; g < ends.size(0); ++g) {
    const int64_t end = ends.const_data_ptr<int32_t>()[g];
    groups.start.push_back(groups.start.back() + round_up(end - groups.begin.back(), multiple));
    groups.begin.push_back(end);
  }
  return groups;
}

// Where each group starts: the ends of those before.
at::Tensor starts_of(const PaddedTokens& padded) {
  return at::constant_pad_nd(padded.ends.to(at::kLong), {1, 0});
}

// Groups of rows, each a whole number of row tiles: the tiles of all of them in a row.
BlockedGroups block_m_groups(const at::Tensor& bytes, const at::Tensor& offs) {
  const int64_t rows = bytes.size(0) + kTileRows * offs.numel();
  const int64_t cols = round_up(bytes.size(1), kTileCols);
  const PaddedTokens padded = pad_tokens(offs, bytes.size(0), kTileRows, round_up(rows, kTileRows));
  const at::Tensor flat = block(to_padded(bytes, padded));
  return {flat.narrow(0, 0, rows * cols).view({rows, cols}), starts_of(padded)};
}

// For groups of columns: a matrix has its tiles row by row, groups have theirs one after the other.
// [tiles] which tile of the matrix comes at each place; -1 past the last group.
at::Tensor tile_in_group_order(const at::Tensor& tile_ends, int64_t row_tiles, int64_t col_tiles) {
  const at::Tensor ends = tile_ends.to(at::kLong);
  const at::Tensor begins = at::constant_pad_nd(ends, {1, -1});
  const at::Tensor group = group_of_rows(ends.mul(row_tiles), row_tiles * col_tiles);
  const at::Tensor inside = group.clamp_max(ends.numel() - 1);
  const at::Tensor begin = begins.index_select(0, inside);
  const at::Tensor width = (ends - begins).clamp_min_(1).index_select(0, inside);
  const at::Tensor place = at::arange(row_tiles * col_tiles, ends.options());
  const at::Tensor in_group = place - begin.mul(row_tiles);
  const at::Tensor tile =
      in_group.div(width, "floor").mul_(col_tiles).add_(begin).add_(in_group.remainder(width));
  return tile.masked_fill_(group.eq(ends.numel()), -1);
}

BlockedGroups block_k_groups(const at::Tensor& bytes, const at::Tensor& offs) {
  const int64_t row_tiles = round_up(bytes.size(0), kTileRows) / kTileRows;
  const int64_t cols = bytes.size(1) + kTileCols * offs.numel();
  const int64_t col_tiles = cols / kTileCols;
  const PaddedTokens padded = pad_tokens(offs, bytes.size(1), kTileCols, col_tiles * kTileCols);
  const at::Tensor out = at::zeros({row_tiles * kTileRows, cols}, bytes.options());
  if (out.numel() > 0) {
    const at::Tensor tiles = block(to_padded(bytes.t(), padded).t())
                                 .view({row_tiles * col_tiles, kTileRows * kTileCols});
    const at::Tensor order =
        tile_in_group_order(padded.ends.div(kTileCols, "floor"), row_tiles, col_tiles);
    const at::Tensor ordered =
        tiles.index_select(0, order.clamp_min(0)).masked_fill_(order.lt(0).unsqueeze(1), 0);
    out.view({-1}).narrow(0, 0, ordered.numel()).copy_(ordered.view({-1}));
  }
  return {out, starts_of(padded)};
}

BlockedGroups of_no_group(at::IntArrayRef sizes, const at::Tensor& bytes) {
  return {at::zeros(sizes, bytes.options()), at::zeros({1}, bytes.options().dtype(at::kLong))};
}

bool uses_cuda_kernels(const at::Tensor& scale, const at::Tensor& offs) {
  return implementation_on(scale.device(), offs.numel()) == Implementation::CUDA_KERNELS;
}

BlockedGroups as_dtype(const BlockedGroups& bytes, at::ScalarType dtype) {
  return {bytes.blocked.view(dtype), bytes.start};
}

void check_blocked(const char* op, const at::Tensor& blocked, at::IntArrayRef expected) {
  check_scale(op, "blocked", blocked, static_cast<int64_t>(expected.size()));
  MOE8_CHECK(blocked.sizes() == expected, op, "blocked", "expected ", expected, ", got ",
             blocked.sizes());
}

void check_size(const char* op, int64_t rows, int64_t cols) {
  MOE8_CHECK(rows >= 0 && cols >= 0, op, "rows, cols", "expected sizes of at least 0, got ", rows,
             " and ", cols);
}

}  // namespace

at::Tensor to_blocked(const at::Tensor& scale) {
  check_scale("to_blocked", "scale", scale, 2);
  return block(bytes_of(scale)).view(scale.scalar_type());
}

at::Tensor from_blocked(const at::Tensor& blocked, int64_t rows, int64_t cols) {
  constexpr const char* kOp = "from_blocked";
  check_size(kOp, rows, cols);
  check_blocked(kOp, blocked, {round_up(rows, kTileRows) * round_up(cols, kTileCols)});
  return unblock(bytes_of(blocked), rows, cols).view(blocked.scalar_type());
}

BlockedGroups to_blocked_m_groups(const at::Tensor& scale, const at::Tensor& offs) {
  constexpr const char* kOp = "to_blocked_m_groups";
  check_scale(kOp, "scale", scale, 2);
  check_offs(kOp, offs, -1, scale.size(0), scale.device());
  const at::Tensor bytes = bytes_of(scale);
  if (offs.numel() == 0) {
    const int64_t cols = round_up(scale.size(1), kTileCols);
    return as_dtype(of_no_group({scale.size(0), cols}, bytes), scale.scalar_type());
  }
  const BlockedGroups made = uses_cuda_kernels(scale, offs) ? cuda_blocked_m_groups(bytes, offs)
                                                            : block_m_groups(bytes, offs);
  return as_dtype(made, scale.scalar_type());
}

at::Tensor from_blocked_m_groups(const at::Tensor& blocked, const at::Tensor& offs, int64_t rows,
                                 int64_t cols) {
  constexpr const char* kOp = "from_blocked_m_groups";
  check_size(kOp, rows, cols);
  const Groups groups = groups_of(kOp, offs, rows, kTileRows);
  check_blocked(kOp, blocked, {rows + kTileRows * offs.size(0), round_up(cols, kTileCols)});
  const at::Tensor bytes = bytes_of(blocked);
  const at::Tensor out = at::zeros({rows, cols}, bytes.options());
  for (int64_t g = 0; g < offs.size(0); ++g) {
    const int64_t size = groups.begin[g + 1] - groups.begin[g];
    const at::Tensor group = bytes.slice(0, groups.start[g], groups.start[g + 1]);
    out.narrow(0, groups.begin[g], size).copy_(unblock(group, size, cols));
  }
  return out.view(blocked.scalar_type());
}

BlockedGroups to_blocked_k_groups(const at::Tensor& scale, const at::Tensor& offs) {
  constexpr const char* kOp = "to_blocked_k_groups";
  check_scale(kOp, "scale", scale, 2);
  check_offs(kOp, offs, -1, scale.size(1), scale.device());
  const at::Tensor bytes = bytes_of(scale);
  if (offs.numel() == 0) {
    const int64_t rows = round_up(scale.size(0), kTileRows);
    return as_dtype(of_no_group({rows, scale.size(1)}, bytes), scale.scalar_type());
  }
  const BlockedGroups made = uses_cuda_kernels(scale, offs) ? cuda_blocked_k_groups(bytes, offs)
                                                            : block_k_groups(bytes, offs);
  return as_dtype(made, scale.scalar_type());
}

at::Tensor from_blocked_k_groups(const at::Tensor& blocked, const at::Tensor& offs, int64_t rows,
                                 int64_t cols) {
  constexpr const char* kOp = "from_blocked_k_groups";
  check_size(kOp, rows, cols);
  const Groups groups = groups_of(kOp, offs, cols, kTileCols);
  const int64_t padded_rows = round_up(rows, kTileRows);
  check_blocked(kOp, blocked, {padded_rows, cols + kTileCols * offs.size(0)});
  const at::Tensor flat = bytes_of(blocked).view({-1});
  const at::Tensor out = at::zeros({rows, cols}, flat.options());
  for (int64_t g = 0; g < offs.size(0); ++g) {
    const int64_t width = groups.begin[g + 1] - groups.begin[g];
    const at::Tensor group =
        flat.slice(0, padded_rows * groups.start[g], padded_rows * groups.start[g + 1]);
    out.narrow(1, groups.begin[g], width).copy_(unblock(group, rows, width));
  }
  return out.view(blocked.scalar_type());
}

at::Tensor to_blocked_3d(const at::Tensor& scale) {
  check_scale("to_blocked_3d", "scale", scale, 3);
  const at::Tensor bytes = bytes_of(scale);
  const int64_t size = round_up(scale.size(1), kTileRows) * round_up(scale.size(2), kTileCols);
  const at::Tensor out = at::empty({scale.size(0), size}, bytes.options());
  for (int64_t e = 0; e < scale.size(0); ++e) out.select(0, e).copy_(block(bytes.select(0, e)));
  return out.view(scale.scalar_type());
}

at::Tensor from_blocked_3d(const at::Tensor& blocked, int64_t rows, int64_t cols) {
  constexpr const char* kOp = "from_blocked_3d";
  check_size(kOp, rows, cols);
  check_scale(kOp, "blocked", blocked, 2);
  check_blocked(kOp, blocked,
                {blocked.size(0), round_up(rows, kTileRows) * round_up(cols, kTileCols)});
  const at::Tensor bytes = bytes_of(blocked);
  const at::Tensor out = at::empty({blocked.size(0), rows, cols}, bytes.options());
  for (int64_t e = 0; e < blocked.size(0); ++e) {
    out.select(0, e).copy_(unblock(bytes.select(0, e), rows, cols));
  }
  return out.view(blocked.scalar_type());
}

}  // namespace moe8
