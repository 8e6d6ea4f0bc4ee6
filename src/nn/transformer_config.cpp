// SPDX-License-Identifier: BSD-3-Clause
// What can be said about a model from its config alone: validity, names and shapes, parameter
// counts; and words for its settings.
#include "moe8/transformer_config.h"

#include <array>
#include <cmath>
#include <functional>
#include <numeric>

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

void add_feed_forward(std::vector<ParameterShape>& list, const std::string& prefix, int64_t dim,
                      int64_t hidden) {
  list.push_back({prefix + "w1.weight", {hidden, dim}});
  list.push_back({prefix + "w2.weight", {dim, hidden}});
  list.push_back({prefix + "w3.weight", {hidden, dim}});
}

void add_attention(std::vector<ParameterShape>& list, const std::string& prefix,
                   const TransformerConfig& c) {
  const int64_t width = c.n_heads * c.head_width(), kv = c.n_kv_heads * c.head_width();
  list.push_back({prefix + "wq.weight", {width, c.dim}});
  list.push_back({prefix + "wk.weight", {kv, c.dim}});
  list.push_back({prefix + "wv.weight", {kv, c.dim}});
  list.push_back({prefix + "wo.weight", {c.dim, width}});
}

void add_moe(std::vector<ParameterShape>& list, const std::string& prefix,
             const TransformerConfig& c) {
  list.push_back({prefix + "router.gate.weight", {c.n_experts, c.dim}});
  list.push_back({prefix + "experts.w1", {c.n_experts, c.hidden_dim, c.dim}});
  list.push_back({prefix + "experts.w2", {c.n_experts, c.dim, c.hidden_dim}});
  list.push_back({prefix + "experts.w3", {c.n_experts, c.hidden_dim, c.dim}});
  if (c.n_shared_experts > 0) {
    add_feed_forward(list, prefix + "shared_experts.", c.dim, c.hidden_dim * c.n_shared_experts);
  }
}

}  // namespace

std::string_view to_string(Recompute value) {
  constexpr std::array<std::string_view, 3> kNames{"none", "selective", "full"};
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
}

std::vector<ParameterShape> parameter_shapes(const TransformerConfig& config) {
  config.validate();
  std::vector<ParameterShape> list{{"tok_embeddings.weight", {config.vocab_size, config.dim}}};
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    add_attention(list, prefix + "attention.", config);
    list.push_back({prefix + "attention_norm.weight", {config.dim}});
    list.push_back({prefix + "ffn_norm.weight", {config.dim}});
    if (layer < config.n_dense_layers) {
      add_feed_forward(list, prefix + "feed_forward.", config.dim, config.dense_hidden_dim);
    } else {
      add_moe(list, prefix + "moe.", config);
    }
  }
  list.push_back({"norm.weight", {config.dim}});
  list.push_back({"output.weight", {config.vocab_size, config.dim}});
  return list;
}

ParameterCounts counts_of(const ParameterShape& parameter, const TransformerConfig& config) {
  const int64_t size = std::accumulate(parameter.shape.begin(), parameter.shape.end(), int64_t{1},
                                       std::multiplies<>());
  const bool routed = parameter.shape.size() == 3;  // the routed experts are the only 3-D ones
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
