// SPDX-License-Identifier: BSD-3-Clause
// Losses that keep a router balanced and its logits small, for models that add them to their own.
// T tokens, E experts. The router itself: routing.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "moe8/score_function.h"

namespace moe8 {

/// The load-balancing loss of Switch Transformer and GShard:
///
///   E * sum_e f[e] * P[e]
///
/// f[e]: the share of all slots that expert e got; P[e]: the mean over the tokens of its score,
/// scores of a token divided by their sum. 1 when all experts get the same; E when one gets all.
/// @param logits             [T, E] bf16 or float32; computed in float32
/// @param tokens_per_expert  [E], what route_tokens counted; no gradient flows through it
/// @return                   a float32 scalar, differentiable in logits
/// @throws c10::Error when shapes or dtypes disagree.
at::Tensor load_balance_loss(const at::Tensor& logits, ScoreFunction score_function,
                             const at::Tensor& tokens_per_expert);

/// The z-loss of ST-MoE: mean over the tokens of (log sum_e exp logits[t, e])^2, in float32.
/// @param logits  [T, E] bf16 or float32
/// @return        a float32 scalar, differentiable
/// @throws c10::Error when the shape or dtype is wrong.
at::Tensor router_z_loss(const at::Tensor& logits);

}  // namespace moe8
