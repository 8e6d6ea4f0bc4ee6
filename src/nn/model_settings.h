// SPDX-License-Identifier: BSD-3-Clause
// The fields of TransformerConfig by name: the keys of [model] in run configs, and what models are
// compared by.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/plain_text.h"
#include "moe8/transformer_config.h"

namespace moe8 {

/// What numbers a setting may be. What other fields decide is TransformerConfig::validate()'s.
enum class SettingRange { ANY, COUNT, COUNT_OR_ZERO, POSITIVE, NOT_NEGATIVE };

/// Visits every field: visit(key, member, range).
template <typename Config, typename Visit>
void for_each_model_setting(Config& c, Visit&& visit) {
  using enum SettingRange;
  visit("vocab_size", c.vocab_size, COUNT);
  visit("dim", c.dim, COUNT);
  visit("n_layers", c.n_layers, COUNT);
  visit("n_heads", c.n_heads, COUNT);
  visit("n_kv_heads", c.n_kv_heads, COUNT);
  visit("head_dim", c.head_dim, COUNT_OR_ZERO);
  visit("max_seq_len", c.max_seq_len, COUNT);
  visit("n_dense_layers", c.n_dense_layers, COUNT_OR_ZERO);
  visit("dense_hidden_dim", c.dense_hidden_dim, COUNT);
  visit("n_experts", c.n_experts, COUNT);
  visit("top_k", c.top_k, COUNT);
  visit("hidden_dim", c.hidden_dim, COUNT);
  visit("n_shared_experts", c.n_shared_experts, COUNT_OR_ZERO);
  visit("score_function", c.score_function, ANY);
  visit("route_norm", c.route_norm, ANY);
  visit("route_scale", c.route_scale, POSITIVE);
  visit("score_before_experts", c.score_before_experts, ANY);
  visit("load_balance_coeff", c.load_balance_coeff, NOT_NEGATIVE);
  visit("aux_loss_coeff", c.aux_loss_coeff, NOT_NEGATIVE);
  visit("z_loss_coeff", c.z_loss_coeff, NOT_NEGATIVE);
  visit("rope_theta", c.rope_theta, POSITIVE);
  visit("norm_eps", c.norm_eps, POSITIVE);
  visit("tied_embeddings", c.tied_embeddings, ANY);
  visit("attention_bias", c.attention_bias, ANY);
  visit("qk_norm", c.qk_norm, ANY);
  visit("attention_sinks", c.attention_sinks, ANY);
  visit("sliding_window", c.sliding_window, COUNT_OR_ZERO);
  visit("full_attention_every", c.full_attention_every, COUNT_OR_ZERO);
  visit("attention_scale", c.attention_scale, NOT_NEGATIVE);
  visit("rotary_pairs", c.rotary_pairs, ANY);
  visit("rope_scaling", c.rope_scaling, ANY);
  visit("rope_factor", c.rope_factor, POSITIVE);
  visit("rope_original_len", c.rope_original_len, COUNT_OR_ZERO);
  visit("rope_slow_turns", c.rope_slow_turns, POSITIVE);
  visit("rope_fast_turns", c.rope_fast_turns, POSITIVE);
  visit("rope_whole_pairs", c.rope_whole_pairs, ANY);
  visit("rope_magnitude", c.rope_magnitude, POSITIVE);
  visit("kv_rank", c.kv_rank, COUNT_OR_ZERO);
  visit("q_rank", c.q_rank, COUNT_OR_ZERO);
  visit("rotary_dim", c.rotary_dim, COUNT_OR_ZERO);
  visit("plain_head_dim", c.plain_head_dim, COUNT_OR_ZERO);
  visit("router_bias", c.router_bias, ANY);
  visit("expert_biases", c.expert_biases, ANY);
  visit("activation", c.activation, ANY);
  visit("swiglu_alpha", c.swiglu_alpha, POSITIVE);
  visit("swiglu_limit", c.swiglu_limit, POSITIVE);
  visit("n_expert_groups", c.n_expert_groups, COUNT);
  visit("top_k_groups", c.top_k_groups, COUNT);
}

/// Unequal for unequal values.
template <typename T>
std::string setting_text(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(to_string(value));
  } else if constexpr (std::is_floating_point_v<T>) {
    return shortest(value);
  } else {
    return std::to_string(value);
  }
}

/// Every field as (key, text), always in the same order.
inline std::vector<std::pair<std::string, std::string>> model_settings(const TransformerConfig& c) {
  std::vector<std::pair<std::string, std::string>> list;
  for_each_model_setting(c, [&](const char* key, const auto& member, SettingRange) {
    list.emplace_back(key, setting_text(member));
  });
  return list;
}

}  // namespace moe8
