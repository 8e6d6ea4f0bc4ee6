// SPDX-License-Identifier: BSD-3-Clause
// Scales to and from the layout of block-scaled tensor cores. All of it is one permutation of
// [row tile, 4 x 32 rows, column tile, 4 columns], applied to each group by itself.
#include "moe8/blocked_scales.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "base/check.h"
#include "formats/integers.h"
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

at::Tensor as_tensor(const std::vector<int64_t>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<int64_t>());
  return tensor;
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
  const at::Tensor bytes = bytes_of(scale);
  if (scale.is_cuda()) {
    check_offs(kOp, offs, -1, scale.size(0), scale.device());
    return as_dtype(cuda_blocked_m_groups(bytes, offs), scale.scalar_type());
  }
  const Groups groups = groups_of(kOp, offs, scale.size(0), kTileRows);
  const int64_t cols = round_up(scale.size(1), kTileCols);
  const at::Tensor out =
      at::zeros({scale.size(0) + kTileRows * offs.size(0), cols}, bytes.options());
  for (int64_t g = 0; g < offs.size(0); ++g) {
    const int64_t rows = groups.start[g + 1] - groups.start[g];
    const at::Tensor group = bytes.slice(0, groups.begin[g], groups.begin[g + 1]);
    out.narrow(0, groups.start[g], rows).view({-1}).copy_(block(group));
  }
  return {out.view(scale.scalar_type()), as_tensor(groups.start)};
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
  const at::Tensor bytes = bytes_of(scale);
  if (scale.is_cuda()) {
    check_offs(kOp, offs, -1, scale.size(1), scale.device());
    return as_dtype(cuda_blocked_k_groups(bytes, offs), scale.scalar_type());
  }
  const Groups groups = groups_of(kOp, offs, scale.size(1), kTileCols);
  const int64_t rows = round_up(scale.size(0), kTileRows);
  const at::Tensor out =
      at::zeros({rows, scale.size(1) + kTileCols * offs.size(0)}, bytes.options());
  for (int64_t g = 0; g < offs.size(0); ++g) {
    const int64_t width = groups.start[g + 1] - groups.start[g];
    const at::Tensor group = bytes.slice(1, groups.begin[g], groups.begin[g + 1]);
    out.view({-1}).narrow(0, rows * groups.start[g], rows * width).copy_(block(group));
  }
  return {out.view(scale.scalar_type()), as_tensor(groups.start)};
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
