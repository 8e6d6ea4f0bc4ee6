// SPDX-License-Identifier: BSD-3-Clause
// Routing of tokens to experts, in pieces: the choice of experts, the order of rows by expert, rows
// in that order, and their weighted sums. What the experts do with the rows: experts.h.
//
// T tokens, k experts for each, E experts, R = T * k. A slot is t * k + j: the j-th expert of token
// t. A row is a slot in the order of experts. A slot whose expert is outside [0, E), such as -1 for
// "not here", is in no group: its row lies after the last group and takes part in nothing.
//
// Nothing here makes the host wait for a GPU. Everything is deterministic: rows are gathered and
// summed up in a fixed order, never by atomic additions of floating-point numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "moe8/score_function.h"

namespace moe8 {

/// How the rows of T tokens with k experts each lie when sorted by expert.
struct ExpertOrder {
  at::Tensor experts;      // [T, k] int32 or int64: the choice, as it was given
  at::Tensor slot_of_row;  // [R] int32: a row of the sorted matrix -> its slot
  at::Tensor row_of_slot;  // [R] int32: the inverse
  at::Tensor offs;         // [E] int32: END row of each expert, as grouped_mm.h wants it
  at::Tensor counts;       // [E] int64: rows of each expert

  int64_t tokens() const { return experts.size(0); }
  int64_t top_k() const { return experts.size(1); }
  int64_t rows() const { return slot_of_row.size(0); }
  int64_t n_experts() const { return offs.size(0); }
};

/// Sorts slots by expert; slots of one expert keep their order.
/// @param experts    [T, k] int32 or int64, on any device; k may be anything, an expert may come
///                   twice in a row
/// @param n_experts  E >= 1
/// @throws c10::Error when shape or dtype is wrong, or T * k is no int32.
ExpertOrder expert_order(const at::Tensor& experts, int64_t n_experts);

/// The rows that the experts read.
///
///   out[r, :] = x[slot_of_row[r] / k, :]       0 for rows in no group
///
/// @param x  [T, N] bf16 or float32 on the order's device
/// @return   [R, N] of x's dtype, contiguous
/// Differentiable in x, also twice: the gradient is combine_rows of the rows' gradients.
at::Tensor permute_tokens(const at::Tensor& x, const ExpertOrder& order);

/// Sums up the rows of each token: the inverse of permute_tokens, with weights.
///
///   out[t, :] = sum_j scores[t, j] * rows[row_of_slot[t * k + j], :]
///
/// in float32, j from 0 to k - 1, rounded once. Slots of no expert add nothing, whatever their
/// score and row hold.
/// @param rows       [R, N] bf16 or float32 on the order's device
/// @param scores     [T, k] floating-point, or nothing for 1
/// @param out_dtype  bf16 or float32; not set: that of rows
/// @return           [T, N], contiguous
/// Differentiable in rows and scores, also twice; gradients have their dtypes.
at::Tensor combine_rows(const at::Tensor& rows, const ExpertOrder& order,
                        const std::optional<at::Tensor>& scores = std::nullopt,
                        std::optional<at::ScalarType> out_dtype = std::nullopt);

/// The arithmetic of a router.
struct RouterOptions {
  int64_t top_k = 1;
  ScoreFunction score_function = ScoreFunction::SOFTMAX;
  bool normalize = false;  // a token's scores are divided by their sum
  double scale = 1.0;      // factor on the scores, after that
  /// Experts in equal groups of neighbours: a token's come from the top_k_groups of them whose two
  /// best preferences (scores and bias) add up to most. 1: no groups.
  int64_t n_groups = 1;
  int64_t top_k_groups = 1;
};

/// Which experts each token goes to, and with what weight.
struct Routing {
  at::Tensor experts;            // [T, top_k] int64, no expert twice in a row
  at::Tensor scores;             // [T, top_k] float32, differentiable
  at::Tensor tokens_per_expert;  // [E] int64
  ExpertOrder order;             // of experts
};

/// Chooses each token's top_k experts, those with the highest score; with a softmax over the chosen
/// ones alone being the same as SOFTMAX with `normalize`.
///
///   p = score_function(logits)            over all experts, in float32
///   experts[t] = the top_k largest of p[t, e] + bias[e]
///   scores[t, j] = scale * p[t, experts[t, j]] / (1, or with `normalize` the sum over j + 1e-20)
///
/// @param logits  [T, E] bf16 or float32
/// @param bias    [E] floating-point: for the choice alone, no part of the scores; or nothing
/// @throws c10::Error when shapes or dtypes disagree, or top_k is not within [1, E].
/// Differentiable in logits, also twice, by way of the scores.
Routing route_tokens(const at::Tensor& logits, const RouterOptions& options,
                     const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace moe8
