// SPDX-License-Identifier: BSD-3-Clause
// The shape of moe8/transformer.h's model, and what follows from it without making one. LibTorch is
// not needed here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe8/score_function.h"

namespace moe8 {

/// The shape of a model and its arithmetic. Widths are numbers of features.
struct TransformerConfig {
  int64_t vocab_size = 256;
  int64_t dim = 256;
  int64_t n_layers = 4;
  int64_t n_heads = 4;
  int64_t n_kv_heads = 4;  // fewer than n_heads: grouped-query attention
  int64_t head_dim = 0;    // the width of one head; 0: dim / n_heads
  int64_t max_seq_len = 1024;

  int64_t n_dense_layers = 1;      // the first layers have one feed-forward instead of experts
  int64_t dense_hidden_dim = 704;  // its width

  int64_t n_experts = 8;
  int64_t top_k = 2;
  int64_t hidden_dim = 256;      // the width of one expert
  int64_t n_shared_experts = 1;  // experts that see every token, fused into one feed-forward; or 0
  ScoreFunction score_function = ScoreFunction::SIGMOID;
  bool route_norm = true;             // the scores of a token's experts sum to 1
  double route_scale = 1.0;           // factor on the scores
  bool score_before_experts = false;  // true: scale an expert's input; false: its output
  double load_balance_coeff = 1e-3;   // step of expert_bias, see update_expert_bias; 0: no bias
  double aux_loss_coeff = 0;          // of load_balance_loss (moe8/router_losses.h); 0: none
  double z_loss_coeff = 0;            // of router_z_loss; 0: none

  double rope_theta = 10000.0;
  double norm_eps = 1e-5;

  /// head_dim, or what stands for 0.
  int64_t head_width() const { return head_dim > 0 ? head_dim : dim / n_heads; }
  /// @throws c10::Error "[TransformerConfig] field: expected ..., got ...".
  void validate() const;
  bool operator==(const TransformerConfig&) const = default;
};

/// A parameter that a model would have.
struct ParameterShape {
  std::string name;  // "layers.1.moe.experts.w1"
  std::vector<int64_t> shape;

  bool operator==(const ParameterShape&) const = default;
};

/// Names and shapes of the parameters of Transformer(config), in its order, without making it.
/// @throws c10::Error when the config is invalid.
std::vector<ParameterShape> parameter_shapes(const TransformerConfig& config);

/// Numbers of elements.
struct ParameterCounts {
  int64_t total = 0;
  int64_t active = 0;  // used by one token: of the routed experts, top_k
};

/// Counts the parameters of Transformer(config) from shapes alone.
/// @throws c10::Error when the config is invalid or has more than 1e16 parameters.
ParameterCounts count_parameters(const TransformerConfig& config);

}  // namespace moe8
