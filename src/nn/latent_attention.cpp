// SPDX-License-Identifier: BSD-3-Clause
// Attention whose keys and values are made of a few features a token.
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "autograd/shared_input.h"
#include "moe8/model_ops.h"
#include "moe8/transformer.h"
#include "nn/attention.h"
#include "nn/init.h"
#include "nn/linear.h"

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

torch::Tensor LatentAttentionImpl::forward(const torch::Tensor& x, const Positions& positions) {
  const auto [first, compressed] = [&]() -> std::array<torch::Tensor, 2> {
    const SharedInput quantized_once(x);
    return {queries(x), linear(x, wkv_a)};
  }();
  const torch::Tensor of_queries = wq ? first : linear(q_norm(first), wq_b);
  const torch::Tensor latent = kv_norm(compressed.narrow(2, 0, rank_).contiguous());
  const torch::Tensor kv =
      linear(latent, wkv_b).view({x.size(0), x.size(1), heads_, plain_ + values_});
  const torch::Tensor q = of_queries.view({x.size(0), x.size(1), heads_, plain_ + rotary_});
  const RotatedHeads rotated =
      rotary_embedding(q.narrow(3, plain_, rotary_),
                       compressed.narrow(2, rank_, rotary_).unsqueeze(2), positions.freqs, pairs_);
  const torch::Tensor key_of_all = rotated.k.expand({-1, -1, heads_, -1});
  const int64_t width = std::max(plain_ + rotary_, values_);
  const auto heads = [&](const torch::Tensor& t) { return widened(t, width).transpose(1, 2); };
  const double scale = scale_ > 0 ? scale_ : 1 / std::sqrt(double(plain_ + rotary_));
  const torch::Tensor out = causal_attention(
      heads(at::cat({q.narrow(3, 0, plain_), rotated.q}, 3)),
      heads(at::cat({kv.narrow(3, 0, plain_), key_of_all}, 3)),
      heads(kv.narrow(3, plain_, values_)), {.scale = scale, .window = positions.window});
  return linear(out.transpose(1, 2).narrow(3, 0, values_).reshape({x.size(0), x.size(1), -1}), wo);
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
