// SPDX-License-Identifier: BSD-3-Clause
// Bringing token rows into the order of their experts and back. No padding, no dropped token.
#pragma once

#include <ATen/core/Tensor.h>

namespace moe8 {

/// How T tokens with top_k experts each lie when sorted by expert. A slot is t * top_k + k.
struct ExpertOrder {
  at::Tensor slot_of_row;  // [T*top_k] int64: a row of the sorted matrix -> its slot
  at::Tensor row_of_slot;  // [T*top_k] int64: the inverse
  at::Tensor offs;         // [E] int32: end row of each expert
};

/// Sorts slots by expert; slots of one expert keep their order.
/// @param experts            [T, top_k] int64
/// @param tokens_per_expert  [E] int64: how often each expert occurs in `experts`
ExpertOrder sort_by_expert(const at::Tensor& experts, const at::Tensor& tokens_per_expert);

/// Copies each token to the rows of its experts: out[r] = x[slot_of_row[r] / top_k].
/// @param x  [T, N], T the number of tokens. Differentiable; the gradient sums a token's copies in
///           a fixed order (index_select's own backward adds atomically on a GPU).
at::Tensor permute_by_expert(const at::Tensor& x, const ExpertOrder& order);

/// Back to slots: out[s] = rows[row_of_slot[s]]. Differentiable, a pure gather both ways.
at::Tensor unpermute_to_slots(const at::Tensor& rows, const ExpertOrder& order);

}  // namespace moe8
