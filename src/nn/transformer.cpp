// SPDX-License-Identifier: BSD-3-Clause
// RMSNorm, attention, the block and the whole transformer. The MoE layer is in moe.cpp.
#include "moe8/transformer.h"

#include <ATen/CPUGeneratorImpl.h>

#include <array>
#include <cmath>
#include <tuple>
#include <utility>

#include "autograd/shared_input.h"
#include "base/check.h"
#include "nn/attention.h"
#include "nn/init.h"
#include "nn/linear.h"
#include "nn/recompute.h"

namespace moe8 {
// ---- norm -------------------------------------------------------------------
RMSNormImpl::RMSNormImpl(int64_t dim, double eps) : eps_(eps) {
  weight = register_parameter("weight", new_parameter({dim}, 1));
}

torch::Tensor RMSNormImpl::forward(const torch::Tensor& x) {
  return rms_norm(x, weight, eps_);
}

torch::Tensor RMSNormImpl::forward_in_parts(const Group& group, const torch::Tensor& x) {
  return rms_norm_in_parts(group, x, weight, eps_);
}

NormedSum RMSNormImpl::add_and_norm(const torch::Tensor& x, const torch::Tensor& y) {
  return add_rms_norm(x, y, weight, eps_);
}

// ---- attention --------------------------------------------------------------
namespace {

// Over ranks goes what the parts of moe8/tensor_parallel.h are made for.
void check_spreads(const TransformerConfig& config, const Group& group) {
  MOE8_CHECK(group.size() == 1 || !config.attention_is_whole(), "Attention", "tensor_group",
             "expected one rank beside attention_bias, attention_sinks and kv_rank, got ",
             group.size());
}

}  // namespace

AttentionImpl::AttentionImpl(const TransformerConfig& config, Group tensor_group)
    : head_dim_(config.head_width()),
      group_(std::move(tensor_group)),
      qk_norm_(config.qk_norm),
      pairs_(config.rotary_pairs),
      scale_(config.attention_scale) {
  // Heads stay whole: a key head lies beside the queries that ask it.
  MOE8_CHECK(config.n_kv_heads % group_.size() == 0, "Attention", "tensor_group",
             "expected a divisor of n_kv_heads = ", config.n_kv_heads, ", got ", group_.size(),
             " ranks");
  check_spreads(config, group_);
  if (config.attention_sinks) {
    sinks = register_parameter("sinks", new_parameter({config.n_heads}, 0));
  }
  const int64_t width = config.n_heads * head_dim_, kv = config.n_kv_heads * head_dim_;
  const auto columns = [&](int64_t out) {
    return config.attention_bias ? linear_with_bias(config.dim, out)
                                 : column_parallel_linear(config.dim, out, group_);
  };
  wq = register_module("wq", columns(width));
  wk = register_module("wk", columns(kv));
  wv = register_module("wv", columns(kv));
  wo =
      register_module("wo", config.attention_bias ? linear_with_bias(width, config.dim)
                                                  : row_parallel_linear(width, config.dim, group_));
  if (qk_norm_ == QkNorm::NONE) return;
  const bool of_head = qk_norm_ == QkNorm::HEAD;
  q_norm = register_module("q_norm", RMSNorm(of_head ? head_dim_ : width, config.norm_eps));
  k_norm = register_module("k_norm", RMSNorm(of_head ? head_dim_ : kv, config.norm_eps));
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x, const Positions& positions) {
  const torch::Tensor all = gather_sequence(group_, x);  // positions
  const auto heads = [&](const torch::Tensor& projected) {
    return projected.view({all.size(0), all.size(1), -1, head_dim_});  // [B, S, H, D]
  };
  const auto [projected_q, projected_k, projected_v] = [&]() -> std::array<torch::Tensor, 3> {
    const SharedInput quantized_once(all);
    return {heads(linear(all, wq)), heads(linear(all, wk)), heads(linear(all, wv))};
  }();
  const auto normed = [&](RMSNorm& norm, const torch::Tensor& projected) {
    if (qk_norm_ == QkNorm::NONE) return projected;
    return qk_norm_ == QkNorm::HEAD ? norm(projected)
                                    : heads(norm->forward_in_parts(group_, projected.flatten(2)));
  };
  const RotatedHeads rotated = rotary_embedding(
      normed(q_norm, projected_q), normed(k_norm, projected_k), positions.freqs, pairs_);
  const torch::Tensor q = rotated.q.transpose(1, 2);
  torch::Tensor k = rotated.k.transpose(1, 2), v = projected_v.transpose(1, 2);
  if (positions.cache) {
    std::tie(k, v) = positions.cache->append(k, v);
    k = newest_keys(k, positions.newest), v = newest_keys(v, positions.newest);
  }
  const torch::Tensor out =
      causal_attention(q, k, v, {.scale = scale_, .window = positions.window, .sinks = sinks});
  const torch::Tensor rows = out.transpose(1, 2).reshape({all.size(0), all.size(1), -1});
  return reduce_scatter_sequence(group_, linear(rows, wo));
}

void AttentionImpl::init_weights(at::Generator& generator, double std) {
  for (auto* projection : {&wq, &wk, &wv}) {
    trunc_normal_rows_((*projection)->weight, generator, kInputStd, group_);
  }
  trunc_normal_columns_(wo->weight, generator, std, group_);
  zero_biases_({&wq, &wk, &wv, &wo});
  if (sinks.defined()) sinks.zero_();
  if (q_norm) q_norm->weight.fill_(1), k_norm->weight.fill_(1);
}

// ---- block ------------------------------------------------------------------
TransformerBlockImpl::TransformerBlockImpl(const TransformerConfig& config, int64_t layer,
                                           const Group& expert_group, const Group& tensor_group)
    // Deeper layers start smaller, so that the residual stream keeps its size.
    : init_std_(kInputStd / std::sqrt(2.0 * static_cast<double>(layer + 1))) {
  if (config.has_latent_attention()) {
    check_spreads(config, tensor_group);
    latent_attention = register_module("attention", LatentAttention(config));
  } else {
    attention = register_module("attention", Attention(config, tensor_group));
  }
  attention_norm = register_module("attention_norm", RMSNorm(config.dim, config.norm_eps));
  ffn_norm = register_module("ffn_norm", RMSNorm(config.dim, config.norm_eps));
  if (layer < config.n_dense_layers) {
    feed_forward = register_module("feed_forward",
                                   FeedForward(config.dim, config.dense_hidden_dim, tensor_group));
  } else {
    moe = register_module("moe", MoE(config, expert_group, tensor_group));
  }
}

// The second half, from the residual stream and what attention adds to it.
torch::Tensor TransformerBlockImpl::feed(const torch::Tensor& x, const torch::Tensor& attended) {
  const NormedSum h = ffn_norm->add_and_norm(x, attended);
  return h.sum + (moe ? moe(h.normed) : feed_forward(h.normed));
}

torch::Tensor TransformerBlockImpl::attend(const torch::Tensor& x, const Positions& positions) {
  return attention ? attention(x, positions) : latent_attention(x, positions);
}

torch::Tensor TransformerBlockImpl::forward(const torch::Tensor& x, const Positions& positions,
                                            Recompute recompute) {
  const auto self = std::static_pointer_cast<TransformerBlockImpl>(shared_from_this());
  if (recompute == Recompute::FULL) {
    return recomputed_in_backward(
        [self, positions](at::TensorList inputs) { return self->forward(inputs[0], positions); },
        {x});
  }
  const NormedSum in = attention_norm->add_and_norm(x);
  const torch::Tensor attended = attend(in.normed, positions);
  if (recompute == Recompute::NONE) return feed(in.sum, attended);
  return recomputed_in_backward(
      [self](at::TensorList inputs) { return self->feed(inputs[0], inputs[1]); },
      {in.sum, attended});
}

void TransformerBlockImpl::init_weights(at::Generator& generator) {
  const torch::NoGradGuard no_grad;
  if (attention) attention->init_weights(generator, init_std_);
  if (latent_attention) latent_attention->init_weights(generator, init_std_);
  attention_norm->weight.fill_(1);
  ffn_norm->weight.fill_(1);
  if (moe) moe->init_weights(generator, init_std_);
  if (feed_forward) feed_forward->init_weights(generator, init_std_);
}

// ---- transformer ------------------------------------------------------------
TransformerImpl::TransformerImpl(const TransformerConfig& config, uint64_t seed,
                                 at::ScalarType dtype, const Group& expert_group,
                                 const Group& tensor_group)
    : config_(config), tensor_group_(tensor_group) {
  config.validate();
  MOE8_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, "Transformer", "dtype",
             "expected bfloat16 or float32, got ", dtype);
  const RoomForWeights init_weights_follows(dtype);
  tok_embeddings = register_module("tok_embeddings", embedding(config.vocab_size, config.dim));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    layers->push_back(TransformerBlock(config, layer, expert_group, tensor_group));
  }
  norm = register_module("norm", RMSNorm(config.dim, config.norm_eps));
  output = linear_without_bias(config.dim, config.vocab_size);
  if (!config.tied_embeddings) register_module("output", output);
  if (config.tied_embeddings) output->weight = tok_embeddings->weight;
  init_weights(seed);
  freqs_ = rotary_frequencies(config);
}

void TransformerImpl::init_weights(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  normal_(tok_embeddings->weight, generator, 1.0);
  for (const auto& layer : *layers) layer->as<TransformerBlockImpl>()->init_weights(generator);
  norm->weight.fill_(1);
  const double std = 1 / std::sqrt(static_cast<double>(config_.dim));
  trunc_normal_(output->weight, generator, std);  // of tied embeddings as well
}

namespace {

void check_tokens(const torch::Tensor& tokens, int64_t earlier, int64_t most) {
  MOE8_CHECK(tokens.dim() == 2 && tokens.scalar_type() == at::kLong, "Transformer", "tokens",
             "expected int64 [batch, sequence], got ", tokens.scalar_type(), " ", tokens.sizes());
  MOE8_CHECK(tokens.numel() > 0 && earlier + tokens.size(1) <= most, "Transformer", "tokens",
             "expected 1 to max_seq_len = ", most, " positions, got ", tokens.sizes(),
             earlier > 0 ? concat(" after ", earlier) : "");
}

void check_options(const torch::Tensor& tokens, const ForwardOptions& options, const Group& group) {
  const KvCache* const cache = options.cache;
  MOE8_CHECK(!cache || !at::GradMode::is_enabled(), "Transformer", "cache",
             "expected none where gradients are recorded. Use torch::NoGradGuard.");
  MOE8_CHECK((!cache && !options.last_position) || group.size() == 1, "Transformer", "cache",
             "expected one rank in the tensor group, got ", group.size());
  MOE8_CHECK(!cache || cache->length() + tokens.size(1) <= cache->capacity(), "Transformer",
             "cache", "expected room for ", tokens.size(1), " positions, got ",
             cache ? cache->capacity() - cache->length() : 0);
  const torch::Tensor& documents = options.documents;
  MOE8_CHECK(!documents.defined() || (!cache && documents.scalar_type() == at::kLong &&
                                      documents.sizes() == tokens.sizes()),
             "Transformer", "documents", "expected int64 ", tokens.sizes(),
             cache ? " and no cache beside it" : "", ", got ", documents.scalar_type(), " ",
             documents.sizes());
}

}  // namespace

// Layers with windows share one mask; a window that holds all keys is none. One query after kept
// positions needs no mask: it sees the newest keys.
std::vector<Positions> TransformerImpl::positions_of_layers(const torch::Tensor& tokens,
                                                            const ForwardOptions& options) {
  const int64_t earlier = options.cache ? options.cache->length() : 0;
  const int64_t queries = tokens.size(1), keys = earlier + queries;
  const at::TensorOptions plain = tok_embeddings->weight.options().requires_grad(false);
  const auto mask_of = [&](int64_t window) -> torch::Tensor {
    if (options.documents.defined()) return document_mask(options.documents, window, plain);
    const bool is_plain = window >= keys && earlier == 0;
    return is_plain || queries == 1 ? torch::Tensor() : window_mask(queries, keys, window, plain);
  };
  const int64_t window = config_.sliding_window;
  const bool has_windows = window > 0 && window < keys;
  const torch::Tensor of_all = mask_of(keys);
  const torch::Tensor of_window = has_windows ? mask_of(window) : torch::Tensor();
  std::vector<Positions> list;
  for (size_t layer = 0; layer < layers->size(); ++layer) {
    const bool has_window = has_windows && config_.window_of(static_cast<int64_t>(layer)) > 0;
    list.push_back({.freqs = freqs_.narrow(0, earlier, queries),
                    .window = has_window ? of_window : of_all,
                    .cache = options.cache ? &options.cache->layers_.at(layer) : nullptr,
                    .newest = has_window && queries == 1 ? window : 0});
  }
  return list;
}

torch::Tensor TransformerImpl::forward(const torch::Tensor& tokens) {
  return forward_with(tokens, {});
}

torch::Tensor TransformerImpl::forward_with(const torch::Tensor& tokens,
                                            const ForwardOptions& options) {
  KvCache* const cache = options.cache;
  check_tokens(tokens, cache ? cache->length() : 0, config_.max_seq_len);
  check_options(tokens, options, tensor_group_);
  if (cache && cache->layers_.empty()) {
    cache->layers_.assign(layers->size(), LayerCache(cache->capacity()));
  }
  if (freqs_.device() != tokens.device()) freqs_ = freqs_.to(tokens.device());
  const std::vector<Positions> positions = positions_of_layers(tokens, options);
  torch::Tensor x = tok_embeddings(sequence_part(tensor_group_, tokens));
  for (size_t layer = 0; layer < layers->size(); ++layer) {
    x = layers->at<TransformerBlockImpl>(layer).forward(x, positions[layer], recompute_);
  }
  if (options.last_position) x = x.narrow(1, x.size(1) - 1, 1);
  return linear(norm(x), output);
}

void cast_parameters_(torch::nn::Module& module, at::ScalarType dtype) {
  for (torch::Tensor& parameter : module.parameters()) parameter.set_data(parameter.to(dtype));
}

}  // namespace moe8
