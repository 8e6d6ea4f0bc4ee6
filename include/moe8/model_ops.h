// SPDX-License-Identifier: BSD-3-Clause
// What a transformer computes around its products, for those who write their own model: rotary
// positions, RMSNorm alone and of a sum, the gate of a feed-forward, and the loss, of logits and of
// hidden rows. moe8's own transformer is made of them.
//
// All are differentiable once, compute in float32 inside and round each result once. bf16 and
// float32 tensors on a GPU that moe8 has kernels for take one pass over memory each way, without
// a wait of the host, in and out of CUDA graphs; every other device and dtype takes LibTorch's
// operations, which can be differentiated again. Deterministic on every device: the same bits each
// time, whatever the number of threads. What is exact: docs/numerics.md, section 8.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "moe8/rotary_pairs.h"

namespace moe8 {

// ---- rotary positions -------------------------------------------------------
/// Queries and keys, rotated.
struct RotatedHeads {
  at::Tensor q, k;
};

/// Rotates each pair (a, b) of a head's features by the angle of its position:
/// (a cos - b sin, a sin + b cos). In float32, each operation rounded by itself, so the same bits
/// on every device.
/// @param q, k   [B, S, H, D] and [B, S, K, D], of one floating dtype; D even
/// @param freqs  [at least S, D/2] complex64, cos + i sin: rotary_frequencies() of transformer.h
/// @return       tensors of these shapes, contiguous: `.transpose(1, 2)` is what
///               scaled_dot_product_attention takes without a copy
/// @throws c10::Error when a shape or dtype is wrong, or tensors are on different devices
RotatedHeads rotary_embedding(const at::Tensor& q, const at::Tensor& k, const at::Tensor& freqs,
                              RotaryPairs pairs = RotaryPairs::NEIGHBOURS);

// ---- norms ------------------------------------------------------------------
/// x / sqrt(mean(x^2) + eps) * weight, over the last axis.
/// @param x       [..., D], D > 0
/// @param weight  [D], of x's dtype
/// @return        x's shape and dtype
/// @throws c10::Error when a shape or dtype is wrong
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// A residual stream and its norm.
struct NormedSum {
  at::Tensor sum, normed;
};

/// sum = x + y, normed = rms_norm(sum), in one pass; backward adds the gradients of both in one.
/// @param y  of x's shape and dtype; undefined: sum is x, and still one pass in backward
NormedSum add_rms_norm(const at::Tensor& x, const at::Tensor& y, const at::Tensor& weight,
                       double eps);

// ---- feed-forward -----------------------------------------------------------
/// silu(gate) * up. On a GPU with kernels it is rounded once; LibTorch rounds silu(gate) as well.
/// @param gate, up  of one shape and dtype
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// ---- loss -------------------------------------------------------------------
/// What cross_entropy does beside its formula.
struct CrossEntropyOptions {
  int64_t ignore_index = -100;  // rows with this target take no part
  /// The gradient takes the memory of the logits: backward then needs no other. For logits that
  /// nobody reads after the call; a second backward through them (retain_graph) is refused. Without
  /// effect where LibTorch computes, and for logits that are a leaf or not contiguous.
  bool overwrite_logits = false;
};

/// The mean over rows of log(sum(exp(x))) - x[target]; NaN when no row takes part.
/// @param logits   [..., V], floating; no float32 copy is made on a GPU with kernels
/// @param targets  [...] int64, 0 <= target < V or ignore_index. Others: an error on a CPU; on a
///                 GPU, where asking would wait, the loss is NaN, and so is that row's gradient
/// @return         a float32 scalar; float64 of float64 logits
/// @throws c10::Error when a shape or dtype is wrong
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                         const CrossEntropyOptions& options = {});

/// What linear_cross_entropy does beside its formula.
struct LinearCrossEntropyOptions {
  int64_t ignore_index = -100;
  /// Logits of so many rows exist at a time; 0: of all, whose memory becomes their gradient's.
  /// In chunks gradients are computed with the loss, those of the weight summed in float32 and
  /// rounded once; they are multiplied by the gradient of the loss in backward.
  int64_t rows_per_chunk = 0;
};

/// cross_entropy(at::linear(x, weight), targets), for vocabularies whose logits are most of a
/// step's memory. A converted weight multiplies in its recipe.
/// @param x       [..., D]
/// @param weight  [V, D]
at::Tensor linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& targets,
                                const LinearCrossEntropyOptions& options = {});

}  // namespace moe8
