// SPDX-License-Identifier: BSD-3-Clause
// Attention whose keys and values are made of a few features a token.
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/matmul.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "autograd/shared_input.h"
#include "moe8/model_ops.h"
#include "moe8/transformer.h"
#include "nn/attention.h"
#include "nn/init.h"
#include "nn/linear.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

constexpr double kLatentEps = 1e-6;  // whatever norm_eps is, as in the published models

// Kernels want queries, keys and values of one width: the narrower ones get zeros, which change
// neither a product of queries and keys nor the other features of the values' sums.
at::Tensor widened(const at::Tensor& heads, int64_t width) {
  const int64_t missing = width - heads.size(3);
  return missing == 0 ? heads : at::constant_pad_nd(heads, {0, missing});
}

}  // namespace

LatentAttentionImpl::LatentAttentionImpl(const TransformerConfig& c)
    : heads_(c.n_heads),
      plain_(c.plain_head_dim),
      rotary_(c.rotary_dim),
      values_(c.head_width()),
      rank_(c.kv_rank),
      pairs_(c.rotary_pairs),
      scale_(c.attention_scale) {
  const auto add = [&](const char* name, int64_t in, int64_t out) {
    return register_module(name, linear_without_bias(in, out));
  };
  const int64_t of_queries = heads_ * (plain_ + rotary_);
  if (c.q_rank > 0) {
    wq_a = add("wq_a", c.dim, c.q_rank);
    q_norm = register_module("q_norm", RMSNorm(c.q_rank, kLatentEps));
    wq_b = add("wq_b", c.q_rank, of_queries);
  } else {
    wq = add("wq", c.dim, of_queries);
  }
  wkv_a = add("wkv_a", c.dim, rank_ + rotary_);
  kv_norm = register_module("kv_norm", RMSNorm(rank_, kLatentEps));
  wkv_b = add("wkv_b", rank_, heads_ * (plain_ + values_));
  wo = add("wo", heads_ * values_, c.dim);
}

torch::Tensor LatentAttentionImpl::queries(const torch::Tensor& x) {
  return wq ? linear(x, wq) : linear(x, wq_a);
}

// What attention is computed of: S positions of queries, K of what keys and values are made of.
struct LatentAttentionImpl::Projected {
  torch::Tensor q_plain;    // [B, S, H, plain]
  torch::Tensor q_rotated;  // [B, S, H, rotary]
  torch::Tensor latent;     // [B, K, rank]
  torch::Tensor key;        // [B, K, 1, rotary], rotated

  double scale(double given) const {
    return given > 0 ? given : 1 / std::sqrt(double(q_plain.size(3) + q_rotated.size(3)));
  }
};

torch::Tensor LatentAttentionImpl::forward(const torch::Tensor& x, const Positions& positions) {
  const auto [first, compressed] = [&]() -> std::array<torch::Tensor, 2> {
    const SharedInput quantized_once(x);
    return {queries(x), linear(x, wkv_a)};
  }();
  const torch::Tensor of_queries = wq ? first : linear(q_norm(first), wq_b);
  const torch::Tensor q = of_queries.view({x.size(0), x.size(1), heads_, plain_ + rotary_});
  const RotatedHeads rotated =
      rotary_embedding(q.narrow(3, plain_, rotary_),
                       compressed.narrow(2, rank_, rotary_).unsqueeze(2), positions.freqs, pairs_);
  Projected of{q.narrow(3, 0, plain_), rotated.q,
               kv_norm(compressed.narrow(2, 0, rank_).contiguous()), rotated.k};
  bool goes_on = false;
  if (positions.cache) {
    goes_on = positions.cache->length() > 0;
    const auto [latents, keys] =
        positions.cache->append(of.latent.unsqueeze(1), rotated.k.transpose(1, 2));
    of.latent = newest_keys(latents, positions.newest).squeeze(1);
    of.key = newest_keys(keys, positions.newest).transpose(1, 2);
  }
  // A converted weight multiplies whole, in its recipe.
  const bool through_latent = goes_on && !find_tag(wkv_b->weight);
  const torch::Tensor out = through_latent ? attend_latent(of, positions) : attend(of, positions);
  return linear(out.reshape({x.size(0), x.size(1), -1}), wo);
}

// Keys and values of all heads, then attention. [B, S, H, values]
torch::Tensor LatentAttentionImpl::attend(const Projected& of, const Positions& positions) {
  const torch::Tensor kv =
      linear(of.latent.contiguous(), wkv_b).view({of.latent.size(0), -1, heads_, plain_ + values_});
  const torch::Tensor key_of_all = of.key.expand({-1, -1, heads_, -1});
  const int64_t width = std::max(plain_ + rotary_, values_);
  const auto heads = [&](const torch::Tensor& t) { return widened(t, width).transpose(1, 2); };
  const torch::Tensor out =
      causal_attention(heads(at::cat({of.q_plain, of.q_rotated}, 3)),
                       heads(at::cat({kv.narrow(3, 0, plain_), key_of_all}, 3)),
                       heads(kv.narrow(3, plain_, values_)),
                       {.scale = of.scale(scale_), .window = positions.window, .sinks = {}});
  return out.transpose(1, 2).narrow(3, 0, values_);
}

// The same without making keys and values of every position that is kept: of wkv_b = [Wk; Wv] per
// head, q (Wk c) = (q Wk) c and sum_i p_i Wv c_i = Wv sum_i p_i c_i. All heads share keys [c, r] and
// values c.
torch::Tensor LatentAttentionImpl::attend_latent(const Projected& of, const Positions& positions) {
  const torch::Tensor per_head = wkv_b->weight.view({heads_, plain_ + values_, rank_});
  const torch::Tensor q =
      at::matmul(of.q_plain.transpose(1, 2), per_head.narrow(1, 0, plain_));  // [B, H, S, rank]
  const torch::Tensor latent = of.latent.unsqueeze(1);
  const torch::Tensor sums = causal_attention(
      at::cat({q, of.q_rotated.transpose(1, 2)}, 3), at::cat({latent, of.key.transpose(1, 2)}, 3),
      widened(latent, rank_ + rotary_),
      {.scale = of.scale(scale_), .window = positions.window, .sinks = {}});
  const torch::Tensor values = per_head.narrow(1, plain_, values_).transpose(1, 2);
  return at::matmul(sums.narrow(3, 0, rank_), values).transpose(1, 2);
}

void LatentAttentionImpl::init_weights(at::Generator& generator, double std) {
  for (auto* projection : {&wq, &wq_a, &wq_b, &wkv_a, &wkv_b}) {
    if (*projection) trunc_normal_((*projection)->weight, generator, kInputStd);
  }
  if (q_norm) q_norm->weight.fill_(1);
  kv_norm->weight.fill_(1);
  trunc_normal_(wo->weight, generator, std);
}

}  // namespace moe8
