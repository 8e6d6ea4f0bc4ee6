// SPDX-License-Identifier: BSD-3-Clause
// Groups of rows padded to a common multiple, by LibTorch's operations on the device of offs: sizes
// follow from shapes alone, and the host waits for nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moe8 {

/// Where tokens lie when the rows of each group are padded.
struct PaddedTokens {
  at::Tensor ends;       // int32 [E], cumulative, multiples of the padding
  at::Tensor source;     // int64 [P]: the token in a padded row; 0 where there is none
  at::Tensor is_token;   // bool [P]
  at::Tensor position;   // int64 [M]: the padded row of a token; 0 for those past the last group
  at::Tensor has_group;  // bool [M]
};

/// @param offs     [E >= 1] int32 end rows; those of clamped_ends count.
/// @param tokens   M >= 0
/// @param padding  what the rows of each group are a multiple of
/// @param rows     P, at least padded_row_bound(tokens, E, padding)
PaddedTokens pad_tokens(const at::Tensor& offs, int64_t tokens, int64_t padding, int64_t rows);

/// The most rows that E groups of together `tokens` rows have when each is padded.
int64_t padded_row_bound(int64_t tokens, int64_t groups, int64_t padding);

/// x [M, C] with its rows at their padded places: [P, C], zeros between them.
at::Tensor to_padded(const at::Tensor& x, const PaddedTokens& tokens);

/// The way back: padded [P, C] -> [M, C], zeros in the rows of no group.
at::Tensor from_padded(const at::Tensor& padded, const PaddedTokens& tokens);

/// int64 [E >= 1] end rows that never decrease and stay in [0, rows], whatever offs hold.
at::Tensor clamped_ends(const at::Tensor& offs, int64_t rows);

/// int64 [rows] the group of each row; that of rows past the last group is E.
at::Tensor group_of_rows(const at::Tensor& offs, int64_t rows);

}  // namespace moe8
