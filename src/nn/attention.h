// SPDX-License-Identifier: BSD-3-Clause
// Causal attention of heads whose positions are already in them.
#pragma once

#include <ATen/core/Tensor.h>

namespace moe8 {

/// softmax over the keys at or before each query of q k^T / sqrt(D), times v: LibTorch's
/// scaled_dot_product_attention. Where LibTorch is asked for deterministic algorithms it leaves
/// cuDNN's kernels out because of their backward; forward is deterministic, and on Hopper it is
/// taken all the same, before the backward of Flash Attention.
/// @param q     [B, H, S, D]
/// @param k, v  [B, K, S, D], H a multiple of K. Transposed views of [B, S, H, D] lie as kernels
///              read them
/// @return      [B, H, S, D], in memory as q
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace moe8
