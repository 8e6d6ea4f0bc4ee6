// SPDX-License-Identifier: BSD-3-Clause
// Rows by expert in LibTorch's operations: on every device, below autograd. The differentiable
// functions over them are in permute.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "moe8/routing.h"

namespace moe8 {

/// Calls f(begin, size) for blocks that make up [0, rows): on a CPU such that an intermediate
/// result in float32 of `columns` per row stays in its caches, elsewhere one block.
template <typename F>
void for_row_blocks(int64_t rows, int64_t columns, const at::Device& device, F f) {
  constexpr int64_t kElements = int64_t{1} << 17;
  const int64_t fit = std::max<int64_t>(kElements / std::max<int64_t>(columns, 1), 16);
  const int64_t block = device.is_cpu() ? fit : std::max<int64_t>(rows, 1);
  for (int64_t begin = 0; begin < rows; begin += block) f(begin, std::min(block, rows - begin));
}

/// The order without the rows in no group, where it is known that `rows` others are: R = rows. The
/// row of a slot in no group, row_of_slot, is R or more then.
ExpertOrder only_in_groups(ExpertOrder order, int64_t rows);

/// bool [R, 1]: rows that are in a group. Undefined where it is known without waiting that all are.
at::Tensor rows_in_groups(const ExpertOrder& order);

/// bool [T, k]: slots whose expert is in [0, E).
at::Tensor slots_in_groups(const ExpertOrder& order);

/// out[r, :] = x[slot_of_row[r] / k, :], of x's dtype; 0 for rows in no group.
at::Tensor gather_tokens(const at::Tensor& x, const ExpertOrder& order);

/// out[r] = of_slots[slot_of_row[r]]: float32 [R] of [T, k]; 0 for rows in no group.
at::Tensor gather_slots(const at::Tensor& of_slots, const ExpertOrder& order);

/// The way back: out[slot_of_row[r]] = of_rows[r], [T, k] of [R]; 0 for slots that have no row. By
/// differentiable operations.
at::Tensor to_slots(const at::Tensor& of_rows, const ExpertOrder& order);

/// out[t, :] = sum_j w[t, j] * (rows[row_of_slot[t * k + j], :] + bias[e]) in float32, j ascending,
/// rounded once.
/// Rows in no group must hold 0.
/// @param scores  w, float32 [T, k], or undefined for 1; those of slots in no group count as 0
/// @return        [T, N], without biases
at::Tensor sum_rows(const at::Tensor& rows, const ExpertOrder& order, const at::Tensor& scores,
                    at::ScalarType out_dtype);

/// The same of some neighbouring tokens, wherever they shall lie.
/// @param bias         [E, N], or undefined for 0; slots in no group have none
/// @param first_token  which token out[0] is
/// @param out          [tokens, N] bf16 or float32, contiguous
void sum_rows_into(const at::Tensor& rows, const ExpertOrder& order, const at::Tensor& scores,
                   const at::Tensor& bias, int64_t first_token, const at::Tensor& out);

}  // namespace moe8
