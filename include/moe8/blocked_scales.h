// SPDX-License-Identifier: BSD-3-Clause
// The scale layout of block-scaled tensor cores and its inverse: 128 x 4 tiles, tiles row-major,
// element (r, c) of a tile at byte (r % 32) * 16 + (r / 32) * 4 + c; padding bytes are 0.
// Scales are one byte each: uint8 or float8_e8m0fnu in, the same dtype out.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moe8 {

/// [R, C] -> flat, round_up(R, 128) * round_up(C, 4) bytes.
at::Tensor to_blocked(const at::Tensor& scale);
/// The inverse of to_blocked, cropped to [rows, cols].
at::Tensor from_blocked(const at::Tensor& blocked, int64_t rows, int64_t cols);

struct BlockedGroups {
  at::Tensor blocked;  // see the function
  at::Tensor start;    // int64 [E + 1]: first padded row (M groups) or column (K groups) of a group
};

/// Groups of rows: scale [M, C], offs [E] int32 end rows. Each group's rows are padded to 128.
/// @return blocked [M + 128 E, round_up(C, 4)], group after group; the tail is 0.
BlockedGroups to_blocked_m_groups(const at::Tensor& scale, const at::Tensor& offs);
at::Tensor from_blocked_m_groups(const at::Tensor& blocked, const at::Tensor& offs, int64_t rows,
                                 int64_t cols);

/// Groups of columns: scale [R, C], offs [E] int32 end columns. Each group's columns are padded
/// to 4.
/// @return blocked [round_up(R, 128), C + 4 E], a flat buffer in which group g starts at
///         round_up(R, 128) * start[g] and has its own round_up(width, 4) columns.
BlockedGroups to_blocked_k_groups(const at::Tensor& scale, const at::Tensor& offs);
at::Tensor from_blocked_k_groups(const at::Tensor& blocked, const at::Tensor& offs, int64_t rows,
                                 int64_t cols);

/// [E, R, C] -> [E, round_up(R, 128) * round_up(C, 4)], to_blocked of each expert.
at::Tensor to_blocked_3d(const at::Tensor& scale);
at::Tensor from_blocked_3d(const at::Tensor& blocked, int64_t rows, int64_t cols);

}  // namespace moe8
