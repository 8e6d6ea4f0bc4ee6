// SPDX-License-Identifier: BSD-3-Clause
// The shape of moe8/transformer.h's model, and what follows from it without making one. LibTorch is
// not needed here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe8/activation.h"
#include "moe8/rotary_pairs.h"
#include "moe8/score_function.h"

namespace moe8 {

/// What queries and keys are normed over before they are rotated, by an RMSNorm each: not at all, the
/// features of each head (as in Qwen3), or those of all heads together (as in OLMoE).
enum class QkNorm { NONE, HEAD, WIDTH };

/// "none", "head", "width".
std::string_view to_string(QkNorm value);

/// How rotary frequencies are stretched for sequences longer than those of the first training:
/// not at all, all by rope_factor, or by the rules of YaRN (arXiv 2309.00071) or of Llama 3.1, which
/// leave those alone that turn often. src/nn/rotary_frequencies.cpp has the formulas.
enum class RopeScaling { NONE, LINEAR, YARN, LLAMA3 };

/// "none", "linear", "yarn", "llama3".
std::string_view to_string(RopeScaling value);

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

  // ---- what published models have beside this; the defaults add nothing ------------------------
  bool tied_embeddings = false;  // the output projection's weight is that of the embeddings

  bool attention_bias = false;  // of wq, wk, wv and wo
  QkNorm qk_norm = QkNorm::NONE;
  bool attention_sinks = false;      // a learned logit per head that takes weight from every key
  int64_t sliding_window = 0;        // a query sees so many positions, its own the last; 0: all
  int64_t full_attention_every = 0;  // of so many layers the last has no window; 0: all have it
  double attention_scale = 0;        // factor on q k^T; 0: 1 / sqrt(the width of a head)

  RotaryPairs rotary_pairs = RotaryPairs::NEIGHBOURS;
  RopeScaling rope_scaling = RopeScaling::NONE;
  double rope_factor = 1.0;       // positions that are stretched are divided by it
  int64_t rope_original_len = 0;  // the positions of the first training (YARN, LLAMA3)
  double rope_slow_turns = 1.0;   // in which features that turn less often are stretched,
  double rope_fast_turns = 32.0;  // those that turn more often are left alone
  bool rope_whole_pairs = true;   // YARN: the bounds between them are whole numbers of pairs
  double rope_magnitude = 1.0;    // factor on rotated queries and keys

  // Latent attention, as in DeepSeek-V2 and V3: keys and values of all heads are made of kv_rank
  // features a token. head_dim is then that of values.
  int64_t kv_rank = 0;     // 0: none
  int64_t q_rank = 0;      // queries likewise; 0: by wq
  int64_t rotary_dim = 0;  // features of queries and keys that rotate; of keys one for all heads
  int64_t plain_head_dim = 0;  // features of a query's and key's head that do not

  bool router_bias = false;
  bool expert_biases = false;                  // of w1, w2 and w3 of the routed experts
  Activation activation = Activation::SWIGLU;  // of the routed experts
  double swiglu_alpha = 1.702;                 // of CLAMPED_SWIGLU, as in moe8/experts.h
  double swiglu_limit = 7.0;
  int64_t n_expert_groups = 1;  // experts are chosen from top_k_groups of these, see RouterOptions
  int64_t top_k_groups = 1;

  /// head_dim, or what stands for 0.
  int64_t head_width() const { return head_dim > 0 ? head_dim : dim / n_heads; }
  bool has_latent_attention() const { return kv_rank > 0; }
  /// Attention has parts that no group of ranks spreads (moe8/tensor_parallel.h).
  bool attention_is_whole() const {
    return has_latent_attention() || attention_bias || attention_sinks;
  }
  /// Features of a query's and of a key's head.
  int64_t query_width() const {
    return has_latent_attention() ? plain_head_dim + rotary_dim : head_width();
  }
  /// Those of them that rotate.
  int64_t rotary_width() const { return has_latent_attention() ? rotary_dim : head_width(); }
  /// Of a layer, counted from 0; 0: none.
  int64_t window_of(int64_t layer) const {
    const bool sees_all = full_attention_every > 0 && (layer + 1) % full_attention_every == 0;
    return sees_all ? 0 : sliding_window;
  }
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
