// SPDX-License-Identifier: BSD-3-Clause
// What can be said about a model from its config alone: validity, names and shapes, parameter
// counts; and words for its settings.
#include "moe8/transformer_config.h"

#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "moe8/recompute.h"
#include "nn/parameter_counts.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "TransformerConfig";

// at::_grouped_mm wants strides that are multiples of 16 bytes: 8 elements of bf16.
constexpr int64_t kWidthMultiple = 8;

// Far above any model, low enough that products of two fields stay in 64 bits.
constexpr int64_t kMaxSize = int64_t{1} << 30;

// Far above any model, low enough that counts and bytes stay in 64 bits.
constexpr double kMaxParameters = 1e16;

void check_range(const char* field, int64_t value, int64_t lowest, int64_t highest = kMaxSize) {
  MOE8_CHECK(value >= lowest && value <= highest, kOp, field, "expected ", lowest, " to ", highest,
             ", got ", value);
}

void check_width(const char* field, int64_t value) {
  check_range(field, value, kWidthMultiple);
  MOE8_CHECK(value % kWidthMultiple == 0, kOp, field, "expected a multiple of ", kWidthMultiple,
             " (rows of 16 bytes in bf16), got ", value);
}

void check_real(const char* field, double value, bool zero_allowed) {
  MOE8_CHECK(std::isfinite(value) && (zero_allowed ? value >= 0 : value > 0), kOp, field,
             "expected a finite number ", zero_allowed ? ">= 0" : "> 0", ", got ", value);
}

void check_attention(const TransformerConfig& c) {
  check_range("sliding_window", c.sliding_window, 0);
  check_range("full_attention_every", c.full_attention_every, 0);
  MOE8_CHECK(c.full_attention_every == 0 || c.sliding_window > 0, kOp, "full_attention_every",
             "expected 0 without sliding_window, got ", c.full_attention_every);
  check_real("attention_scale", c.attention_scale, true);
}

void check_rope(const TransformerConfig& c) {
  check_real("rope_factor", c.rope_factor, false);
  check_real("rope_magnitude", c.rope_magnitude, false);
  check_range("rope_original_len", c.rope_original_len, 0);
  const bool has_turns =
      c.rope_scaling == RopeScaling::YARN || c.rope_scaling == RopeScaling::LLAMA3;
  if (!has_turns) return;
  check_range("rope_original_len", c.rope_original_len, 1);
  check_real("rope_slow_turns", c.rope_slow_turns, false);
  check_real("rope_fast_turns", c.rope_fast_turns, false);
  MOE8_CHECK(c.rope_fast_turns > c.rope_slow_turns, kOp, "rope_fast_turns",
             "expected more than rope_slow_turns = ", c.rope_slow_turns, ", got ",
             c.rope_fast_turns);
}

void check_latent_attention(const TransformerConfig& c) {
  check_range("kv_rank", c.kv_rank, 0);
  check_range("q_rank", c.q_rank, 0);
  if (!c.has_latent_attention()) {
    for (const auto& [field, value] : {std::pair<const char*, int64_t>{"q_rank", c.q_rank},
                                       {"rotary_dim", c.rotary_dim},
                                       {"plain_head_dim", c.plain_head_dim}}) {
      MOE8_CHECK(value == 0, kOp, field, "expected 0 without kv_rank, got ", value);
    }
    return;
  }
  check_range("rotary_dim", c.rotary_dim, 2);
  MOE8_CHECK(c.rotary_dim % 2 == 0, kOp, "rotary_dim", "expected an even number, got ",
             c.rotary_dim);
  check_range("plain_head_dim", c.plain_head_dim, 0);
  MOE8_CHECK(c.n_kv_heads == c.n_heads, kOp, "n_kv_heads", "expected n_heads = ", c.n_heads,
             " beside kv_rank, got ", c.n_kv_heads);
  MOE8_CHECK(
      !c.attention_bias && !c.attention_sinks && c.qk_norm == QkNorm::NONE && c.sliding_window == 0,
      kOp, "kv_rank",
      "expected no attention_bias, attention_sinks, qk_norm and sliding_window beside it. "
      "Latent attention has none of them here.");
}

void check_router(const TransformerConfig& c) {
  check_range("n_expert_groups", c.n_expert_groups, 1, c.n_experts);
  check_range("top_k_groups", c.top_k_groups, 1, c.n_expert_groups);
  const int64_t of_group = c.n_experts / c.n_expert_groups;
  MOE8_CHECK(c.n_experts % c.n_expert_groups == 0, kOp, "n_expert_groups",
             "expected a divisor of n_experts = ", c.n_experts, ", got ", c.n_expert_groups);
  MOE8_CHECK(c.top_k <= c.top_k_groups * of_group, kOp, "top_k_groups",
             "expected groups that hold top_k = ", c.top_k, " experts, got ", c.top_k_groups,
             " of ", of_group, " each");
  MOE8_CHECK(c.n_expert_groups == 1 || of_group >= 2, kOp, "n_expert_groups",
             "expected groups of two experts or more, got ", c.n_expert_groups, " groups of ",
             of_group);
}

void add_feed_forward(std::vector<ParameterShape>& list, const std::string& prefix, int64_t dim,
                      int64_t hidden) {
  list.push_back({prefix + "w1.weight", {hidden, dim}});
  list.push_back({prefix + "w2.weight", {dim, hidden}});
  list.push_back({prefix + "w3.weight", {hidden, dim}});
}

void add_linear(std::vector<ParameterShape>& list, const std::string& name, int64_t out, int64_t in,
                bool bias = false) {
  list.push_back({name + ".weight", {out, in}});
  if (bias) list.push_back({name + ".bias", {out}});
}

void add_attention(std::vector<ParameterShape>& list, const std::string& prefix,
                   const TransformerConfig& c) {
  const int64_t width = c.n_heads * c.head_width(), kv = c.n_kv_heads * c.head_width();
  if (c.attention_sinks) list.push_back({prefix + "sinks", {c.n_heads}});
  add_linear(list, prefix + "wq", width, c.dim, c.attention_bias);
  add_linear(list, prefix + "wk", kv, c.dim, c.attention_bias);
  add_linear(list, prefix + "wv", kv, c.dim, c.attention_bias);
  add_linear(list, prefix + "wo", c.dim, width, c.attention_bias);
  if (c.qk_norm == QkNorm::NONE) return;
  const bool of_head = c.qk_norm == QkNorm::HEAD;
  list.push_back({prefix + "q_norm.weight", {of_head ? c.head_width() : width}});
  list.push_back({prefix + "k_norm.weight", {of_head ? c.head_width() : kv}});
}

void add_latent_attention(std::vector<ParameterShape>& list, const std::string& prefix,
                          const TransformerConfig& c) {
  const int64_t queries = c.n_heads * c.query_width();
  if (c.q_rank > 0) {
    add_linear(list, prefix + "wq_a", c.q_rank, c.dim);
    list.push_back({prefix + "q_norm.weight", {c.q_rank}});
    add_linear(list, prefix + "wq_b", queries, c.q_rank);
  } else {
    add_linear(list, prefix + "wq", queries, c.dim);
  }
  add_linear(list, prefix + "wkv_a", c.kv_rank + c.rotary_dim, c.dim);
  list.push_back({prefix + "kv_norm.weight", {c.kv_rank}});
  add_linear(list, prefix + "wkv_b", c.n_heads * (c.plain_head_dim + c.head_width()), c.kv_rank);
  add_linear(list, prefix + "wo", c.dim, c.n_heads * c.head_width());
}

void add_moe(std::vector<ParameterShape>& list, const std::string& prefix,
             const TransformerConfig& c) {
  add_linear(list, prefix + "router.gate", c.n_experts, c.dim, c.router_bias);
  list.push_back({prefix + "experts.w1", {c.n_experts, c.hidden_dim, c.dim}});
  list.push_back({prefix + "experts.w2", {c.n_experts, c.dim, c.hidden_dim}});
  list.push_back({prefix + "experts.w3", {c.n_experts, c.hidden_dim, c.dim}});
  if (c.expert_biases) {
    list.push_back({prefix + "experts.b1", {c.n_experts, c.hidden_dim}});
    list.push_back({prefix + "experts.b2", {c.n_experts, c.dim}});
    list.push_back({prefix + "experts.b3", {c.n_experts, c.hidden_dim}});
  }
  if (c.n_shared_experts > 0) {
    add_feed_forward(list, prefix + "shared_experts.", c.dim, c.hidden_dim * c.n_shared_experts);
  }
}

}  // namespace

std::string_view to_string(Recompute value) {
  constexpr std::array<std::string_view, 3> kNames{"none", "selective", "full"};
  return kNames.at(static_cast<size_t>(value));
}

std::string_view to_string(QkNorm value) {
  constexpr std::array<std::string_view, 3> kNames{"none", "head", "width"};
  return kNames.at(static_cast<size_t>(value));
}

std::string_view to_string(RopeScaling value) {
  constexpr std::array<std::string_view, 4> kNames{"none", "linear", "yarn", "llama3"};
  return kNames.at(static_cast<size_t>(value));
}

std::string_view to_string(RotaryPairs value) {
  constexpr std::array<std::string_view, 2> kNames{"neighbours", "halves"};
  return kNames.at(static_cast<size_t>(value));
}

std::string_view to_string(Activation value) {
  constexpr std::array<std::string_view, 2> kNames{"swiglu", "clamped_swiglu"};
  return kNames.at(static_cast<size_t>(value));
}

void TransformerConfig::validate() const {
  check_range("vocab_size", vocab_size, 1);
  check_width("dim", dim);
  check_range("n_layers", n_layers, 1, 10000);
  check_range("n_heads", n_heads, 1);
  check_range("head_dim", head_dim, 0);
  MOE8_CHECK(head_dim > 0 || (dim % n_heads == 0 && head_width() % 2 == 0), kOp, "n_heads",
             "expected a divisor of dim = ", dim, " that leaves an even head width, got ", n_heads,
             ". Set head_dim for another width.");
  MOE8_CHECK(head_width() % 2 == 0, kOp, "head_dim", "expected an even number, got ", head_dim);
  check_range("n_kv_heads", n_kv_heads, 1);
  MOE8_CHECK(n_heads % n_kv_heads == 0, kOp, "n_kv_heads",
             "expected a divisor of n_heads = ", n_heads, ", got ", n_kv_heads);
  check_range("max_seq_len", max_seq_len, 1);
  check_range("n_dense_layers", n_dense_layers, 0, n_layers - 1);
  check_width("dense_hidden_dim", dense_hidden_dim);
  check_range("n_experts", n_experts, 1, 1 << 20);
  check_range("top_k", top_k, 1, n_experts);
  check_width("hidden_dim", hidden_dim);
  check_range("n_shared_experts", n_shared_experts, 0, 1 << 20);
  MOE8_CHECK(score_function == ScoreFunction::SOFTMAX || score_function == ScoreFunction::SIGMOID,
             kOp, "score_function", "expected softmax or sigmoid, got an invalid enumerator");
  check_real("route_scale", route_scale, false);
  check_real("load_balance_coeff", load_balance_coeff, true);
  check_real("aux_loss_coeff", aux_loss_coeff, true);
  check_real("z_loss_coeff", z_loss_coeff, true);
  check_real("rope_theta", rope_theta, false);
  check_real("norm_eps", norm_eps, false);
  check_attention(*this);
  check_rope(*this);
  check_latent_attention(*this);
  check_router(*this);
  check_real("swiglu_alpha", swiglu_alpha, false);
  check_real("swiglu_limit", swiglu_limit, false);
}

std::vector<ParameterShape> parameter_shapes(const TransformerConfig& config) {
  config.validate();
  std::vector<ParameterShape> list{{"tok_embeddings.weight", {config.vocab_size, config.dim}}};
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    config.has_latent_attention() ? add_latent_attention(list, prefix + "attention.", config)
                                  : add_attention(list, prefix + "attention.", config);
    list.push_back({prefix + "attention_norm.weight", {config.dim}});
    list.push_back({prefix + "ffn_norm.weight", {config.dim}});
    if (layer < config.n_dense_layers) {
      add_feed_forward(list, prefix + "feed_forward.", config.dim, config.dense_hidden_dim);
    } else {
      add_moe(list, prefix + "moe.", config);
    }
  }
  list.push_back({"norm.weight", {config.dim}});
  if (!config.tied_embeddings) add_linear(list, "output", config.vocab_size, config.dim);
  return list;
}

ParameterCounts counts_of(const ParameterShape& parameter, const TransformerConfig& config) {
  const int64_t size = std::accumulate(parameter.shape.begin(), parameter.shape.end(), int64_t{1},
                                       std::multiplies<>());
  const bool routed = parameter.name.find(".moe.experts.") != std::string::npos;
  return {size, routed ? size / config.n_experts * config.top_k : size};
}

ParameterCounts count_parameters(const TransformerConfig& config) {
  ParameterCounts counts;
  for (const ParameterShape& parameter : parameter_shapes(config)) {
    // Of three fields the product may not fit 64 bits.
    const double about =
        std::accumulate(parameter.shape.begin(), parameter.shape.end(), 1.0, std::multiplies<>());
    MOE8_CHECK(static_cast<double>(counts.total) + about <= kMaxParameters, kOp, "parameters",
               "expected at most ", kMaxParameters, " in all, got more by ", parameter.name);
    const ParameterCounts own = counts_of(parameter, config);
    counts.total += own.total;
    counts.active += own.active;
  }
  return counts;
}

}  // namespace moe8
