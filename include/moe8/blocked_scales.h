// SPDX-License-Identifier: BSD-3-Clause
// The scale layout of block-scaled tensor cores and its inverse: tiles of 128 rows x 4 columns,
// tiles row-major, element (r, c) of a tile at byte (r % 32) * 16 + (r / 32) * 4 + c.
// In every function: scales are one byte each, uint8 or float8_e8m0fnu in, the same dtype out;
// padding bytes are 0; the result is contiguous, on the device of the scale, not
// differentiable, and deterministic: bytes are moved, never computed.
// @throws c10::Error "[function] argument: expected ..., got ..." on another dtype, rank or size.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moe8 {

/// One matrix of scales.
/// @param scale  [R, C]; for MX along the last axis of [R, K]: C = K / 32, rounded up.
/// @return       [round_up(R, 128) * round_up(C, 4)], flat.
at::Tensor to_blocked(const at::Tensor& scale);

/// The inverse of to_blocked.
/// @param blocked     [round_up(rows, 128) * round_up(cols, 4)]
/// @param rows, cols  the sizes R and C before padding, at least 0.
/// @return            [rows, cols]
at::Tensor from_blocked(const at::Tensor& blocked, int64_t rows, int64_t cols);

/// Blocked scales of groups, and where each group starts in them.
struct BlockedGroups {
  at::Tensor blocked;  // see the function
  at::Tensor start;    // int64 [E + 1]: first padded row (M groups) or column (K groups) of a group
};

/// Groups of rows, as of token rows sorted by expert: each group's rows are padded to 128.
/// @param scale  [M, C]
/// @param offs   [E] int32 end rows, non-decreasing, the last at most M; on the device of scale.
/// @return       blocked [M + 128 E, round_up(C, 4)], group after group, each in tile order; rows
///               past the last group are 0. The size follows from shapes alone.
BlockedGroups to_blocked_m_groups(const at::Tensor& scale, const at::Tensor& offs);

/// The inverse of to_blocked_m_groups.
/// @param blocked     [rows + 128 E, round_up(cols, 4)]
/// @param offs        as above, with the last at most `rows`.
/// @return            [rows, cols]; rows past the last group are 0.
at::Tensor from_blocked_m_groups(const at::Tensor& blocked, const at::Tensor& offs, int64_t rows,
                                 int64_t cols);

/// Groups of columns, as of blocks along token rows: each group's columns are padded to 4.
/// @param scale  [R, C]
/// @param offs   [E] int32 end columns, non-decreasing, the last at most C; on the device of scale.
/// @return       blocked [round_up(R, 128), C + 4 E], a flat buffer in which group g starts at
///               round_up(R, 128) * start[g] and has its own round_up(width, 4) columns.
BlockedGroups to_blocked_k_groups(const at::Tensor& scale, const at::Tensor& offs);

/// The inverse of to_blocked_k_groups.
/// @param blocked     [round_up(rows, 128), cols + 4 E]
/// @param offs        as above, with the last at most `cols`.
/// @return            [rows, cols]; columns past the last group are 0.
at::Tensor from_blocked_k_groups(const at::Tensor& blocked, const at::Tensor& offs, int64_t rows,
                                 int64_t cols);

/// to_blocked of each expert.
/// @param scale  [E, R, C]
/// @return       [E, round_up(R, 128) * round_up(C, 4)]
at::Tensor to_blocked_3d(const at::Tensor& scale);

/// The inverse of to_blocked_3d.
/// @param blocked     [E, round_up(rows, 128) * round_up(cols, 4)]
/// @return            [E, rows, cols]
at::Tensor from_blocked_3d(const at::Tensor& blocked, int64_t rows, int64_t cols);

}  // namespace moe8
