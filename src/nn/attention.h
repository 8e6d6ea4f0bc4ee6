// SPDX-License-Identifier: BSD-3-Clause
// Causal attention of heads whose positions are already in them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moe8 {

/// What attention may have beside its formula. The defaults take the fastest kernels.
struct AttentionOptions {
  double scale = 0;     // factor on q k^T; 0: 1 / sqrt(D)
  at::Tensor window{};  // [S, K] or [B, 1, S, K], as window_mask() makes it: instead of all keys up
                        // to the query
  at::Tensor sinks{};   // [H]: a logit in each query's softmax that no value stands behind
};

/// softmax over the keys at or before each query of q k^T / sqrt(D), times v: LibTorch's
/// scaled_dot_product_attention. Where LibTorch is asked for deterministic algorithms it leaves
/// cuDNN's kernels out because of their backward; forward is deterministic, and on Hopper it is
/// taken all the same, before the backward of Flash Attention.
///
/// With sinks on a CPU the same kernel computes as without them, and what it gave is scaled by the
/// weight that the sink leaves to the keys; backward is the kernel's as well. Elsewhere LibTorch's
/// operations write all [B, H, S, S] weights to memory.
/// @param q  [B, H, S, D]
/// @param k  [B, G, K, D], H a multiple of G. Transposed views of [B, S, H, D] lie as kernels read
///           them. There are as many keys as queries, or more, and then the queries are the last
///           positions: one, which sees all keys, or several with a window
/// @param v  [B, G, K, D]
/// @return   [B, H, S, D], where there are no sinks in memory as q
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOptions& options = {});

/// 0 where a query sees a key, else -inf: of `window` positions, its own the last.
/// @param queries  the last of the `keys` positions
/// @param options  dtype and device of q
/// @return         [queries, keys]
at::Tensor window_mask(int64_t queries, int64_t keys, int64_t window,
                       const at::TensorOptions& options);

/// window_mask() for all positions of sequences of several documents, across which no query sees.
/// @param documents  [B, S], a number per document
/// @return           [B, 1, S, S]
at::Tensor document_mask(const at::Tensor& documents, int64_t window,
                         const at::TensorOptions& options);

/// The newest of keys or values [B, H, K, D] that are kept; 0: all.
inline at::Tensor newest_keys(const at::Tensor& kept, int64_t newest) {
  const int64_t all = kept.size(2);
  return newest > 0 && newest < all ? kept.narrow(2, all - newest, newest) : kept;
}

}  // namespace moe8
