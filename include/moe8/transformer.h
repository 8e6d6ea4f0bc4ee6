// SPDX-License-Identifier: BSD-3-Clause
// A mixture-of-experts transformer with torchtitan's parameter names. Its routed experts are those of
// experts.h, what lies around its products is that of model_ops.h, the rest plain LibTorch
// operations; quantize_() of quantize_model.h alone makes it compute in low precision.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

#include "moe8/expert_parallel.h"
#include "moe8/experts.h"
#include "moe8/generate.h"
#include "moe8/model_ops.h"
#include "moe8/parallel.h"
#include "moe8/recompute.h"
#include "moe8/routing.h"
#include "moe8/tensor_parallel.h"
#include "moe8/transformer_config.h"

namespace moe8 {

/// out = x / sqrt(mean(x^2) + eps) * weight, over the last axis. Dtype of x, computed in float32.
class RMSNormImpl : public torch::nn::Module {
 public:
  RMSNormImpl(int64_t dim, double eps);
  torch::Tensor forward(const torch::Tensor& x);
  /// Of x with this rank's part of the features, see rms_norm_in_parts() of tensor_parallel.h.
  torch::Tensor forward_in_parts(const Group& group, const torch::Tensor& x);
  /// x + y and its norm by add_rms_norm() of model_ops.h; without y x and its norm.
  NormedSum add_and_norm(const torch::Tensor& x, const torch::Tensor& y = {});

  torch::Tensor weight;  // [dim]

 private:
  double eps_;
};
TORCH_MODULE(RMSNorm);

/// SwiGLU: w2(silu(w1(x)) * w3(x)), without biases. Weights [hidden, dim], [dim, hidden],
/// [hidden, dim].
class FeedForwardImpl : public torch::nn::Module {
 public:
  /// @param tensor_group  over which hidden is spread, see moe8/tensor_parallel.h; x and the result
  ///                      are then this rank's positions, along the last dimension but one
  FeedForwardImpl(int64_t dim, int64_t hidden_dim, Group tensor_group = Group());
  torch::Tensor forward(const torch::Tensor& x);  // [..., dim] -> [..., dim]
  void init_weights(at::Generator& generator, double std);

  torch::nn::Linear w1{nullptr}, w2{nullptr}, w3{nullptr};

 private:
  Group group_;
};
TORCH_MODULE(FeedForward);

/// What the positions of a sequence are to attention.
struct Positions {
  torch::Tensor freqs;  // [S, rotary width / 2] complex64: how each turns, see rotary_frequencies
  // [S, K] or [B, 1, S, K]: 0 where a query sees a key, else -inf; undefined: all up to it
  torch::Tensor window;
  LayerCache* cache =
      nullptr;         // earlier positions, to which these are added; K counts them as well
  int64_t newest = 0;  // of the keys only so many, the newest, are seen; 0: all
};

/// Causal attention with rotary positions; n_kv_heads may be fewer than n_heads. Norms, biases, sinks
/// and windows as the config says.
class AttentionImpl : public torch::nn::Module {
 public:
  /// @param tensor_group  over which heads are spread, see moe8/tensor_parallel.h; x and the result
  ///                      are then the positions of this rank. Only without attention_bias
  ///                      and attention_sinks
  explicit AttentionImpl(const TransformerConfig& config, Group tensor_group = Group());
  /// @param x          [B, S, dim]
  /// @param positions  of all ranks
  torch::Tensor forward(const torch::Tensor& x, const Positions& positions);
  void init_weights(at::Generator& generator, double std);

  torch::Tensor sinks;  // [n_heads], a logit beside those of the keys; undefined without sinks
  torch::nn::Linear wq{nullptr}, wk{nullptr}, wv{nullptr}, wo{nullptr};
  RMSNorm q_norm{nullptr}, k_norm{nullptr};  // empty without qk_norm

 private:
  int64_t head_dim_;
  Group group_;
  QkNorm qk_norm_;
  RotaryPairs pairs_;
  double scale_;  // 0: 1 / sqrt(head_dim)
};
TORCH_MODULE(Attention);

/// Causal attention whose keys and values are made of kv_rank features, and queries of q_rank:
///
///   [c, r] = wkv_a(x)          q = wq_b(q_norm(wq_a(x))), or wq(x)       per head: [plain, rotary]
///   [k, v] = wkv_b(kv_norm(c)) per head                                  key: [k, rotated r]
///
/// r is one for all heads. As in DeepSeek-V2 and V3, with torchtitan's names.
class LatentAttentionImpl : public torch::nn::Module {
 public:
  explicit LatentAttentionImpl(const TransformerConfig& config);
  torch::Tensor forward(const torch::Tensor& x, const Positions& positions);
  void init_weights(at::Generator& generator, double std);

  torch::nn::Linear wq{nullptr};  // empty with q_rank
  torch::nn::Linear wq_a{nullptr};
  RMSNorm q_norm{nullptr};
  torch::nn::Linear wq_b{nullptr};
  torch::nn::Linear wkv_a{nullptr};
  RMSNorm kv_norm{nullptr};
  torch::nn::Linear wkv_b{nullptr}, wo{nullptr};

 private:
  struct Projected;
  torch::Tensor queries(const torch::Tensor& x);
  torch::Tensor attend(const Projected& of, const Positions& positions);
  torch::Tensor attend_latent(const Projected& of, const Positions& positions);

  int64_t heads_, plain_, rotary_, values_, rank_;
  RotaryPairs pairs_;
  double scale_;
};
TORCH_MODULE(LatentAttention);

/// exp(i * position * theta^(-2j / head_dim)) for j < head_dim / 2; position counts from 0.
/// @param head_dim  the width of one head, even.
/// @return          [seq_len, head_dim/2] complex64, on the CPU; computed in double.
torch::Tensor rotary_frequencies(int64_t head_dim, int64_t seq_len, double theta);

/// Those of a model, for max_seq_len positions: stretched as rope_scaling says, times rope_magnitude.
torch::Tensor rotary_frequencies(const TransformerConfig& config);

/// Chooses each token's top_k experts, by route_tokens of moe8/routing.h.
class RouterImpl : public torch::nn::Module {
 public:
  explicit RouterImpl(const TransformerConfig& config);
  /// @param x            [T, dim]
  /// @param expert_bias  [E] float32 or undefined; added for the choice only, never to the scores.
  Routing forward(const torch::Tensor& x, const torch::Tensor& expert_bias);
  /// The two steps of forward().
  torch::Tensor logits(const torch::Tensor& x);
  Routing route(const torch::Tensor& logits, const torch::Tensor& expert_bias) const;

  torch::nn::Linear gate{nullptr};

 private:
  TransformerConfig config_;
};
TORCH_MODULE(Router);

/// All routed experts' SwiGLU, by moe_experts of moe8/experts.h; over the ranks of a group by
/// moe_experts_parallel of moe8/expert_parallel.h.
class ExpertsImpl : public torch::nn::Module {
 public:
  /// @param group  over which the experts are spread: of n_experts this rank holds n_experts / size,
  ///               from rank * n_experts / size on
  explicit ExpertsImpl(const TransformerConfig& config, const Group& group = Group());
  /// @param x  [T, dim], in the order of tokens
  /// @return   [T, dim]: the sum over each token's experts, with their scores
  torch::Tensor forward(const torch::Tensor& x, const Routing& routing);
  /// forward() in an exchange over group() that has begun.
  torch::Tensor forward_in(const TokenExchange& exchange, const torch::Tensor& x,
                           const Routing& routing);
  /// Those of all experts, whoever holds them: the weights of a rank are part of these.
  void init_weights(at::Generator& generator, double std);
  const Group& group() const { return group_; }
  int64_t first_expert() const { return group_.rank() * w1.size(0); }

  torch::Tensor w1, w2, w3;  // [E, hidden, dim], [E, dim, hidden], [E, hidden, dim]
  torch::Tensor b1, b2, b3;  // [E, hidden], [E, dim], [E, hidden]; undefined without biases
  // Beside w1, w2 and w3, undefined unless add_lora() of moe8/lora.h made them.
  ExpertAdapter lora1, lora2, lora3;
  double lora_scale = 1;

 private:
  ExpertsOptions options() const;

  Group group_;
  ExpertsOptions fixed_;  // all but the biases
};
TORCH_MODULE(Experts);

/// Router, routed experts and shared experts:
///
///   out[t] = shared(x[t]) + sum_k scores[t, k] * expert[experts[t, k]](x[t])
///
/// No token is dropped and no group is padded. Deterministic on every device. With a group of ranks the
/// routed experts are spread over it, each rank has its own tokens and routes them; counts and losses
/// of the router are those of this rank's tokens.
class MoEImpl : public torch::nn::Module {
 public:
  /// @param group         see Experts
  /// @param tensor_group  over which the shared experts are spread, see FeedForward; x is then this
  ///                      rank's positions
  explicit MoEImpl(const TransformerConfig& config, const Group& group = Group(),
                   const Group& tensor_group = Group());
  torch::Tensor forward(const torch::Tensor& x);  // [B, S, dim] -> [B, S, dim]
  void init_weights(at::Generator& generator, double std);
  /// One step of the balancing bias of this layer; see the free function.
  void update_expert_bias();
  /// What the losses of this layer's router weigh beside the model's loss; see the free function.
  void weigh_router_losses(double weight) { router_loss_weight_ = weight; }

  Router router{nullptr};
  Experts experts{nullptr};
  FeedForward shared_experts{nullptr};  // empty when n_shared_experts is 0
  torch::Tensor expert_bias;        // buffer [E] float32; undefined when load_balance_coeff is 0
  torch::Tensor tokens_per_expert;  // buffer [E] float32: counts of training since the last update
  // Buffer [2] float32: sums of load_balance_loss and router_z_loss of training since the last
  // update, before their coefficients; undefined when both of these are 0.
  torch::Tensor router_losses;

 private:
  torch::Tensor with_experts(const torch::Tensor& x, const torch::Tensor& rows,
                             const Routing& routing);  // routed and shared
  torch::Tensor shared(const torch::Tensor& x, const torch::Tensor& rows);

  TransformerConfig config_;
  bool shares_positions_ = false;  // with the ranks of a tensor group
  double router_loss_weight_ = 1;
};
TORCH_MODULE(MoE);

/// x + attention(norm(x)), then + experts(norm(x)) or feed_forward(norm(x)).
class TransformerBlockImpl : public torch::nn::Module {
 public:
  TransformerBlockImpl(const TransformerConfig& config, int64_t layer,
                       const Group& expert_group = Group(), const Group& tensor_group = Group());
  torch::Tensor forward(const torch::Tensor& x, const Positions& positions,
                        Recompute recompute = Recompute::NONE);
  void init_weights(at::Generator& generator);

  Attention attention{nullptr};
  LatentAttention latent_attention{nullptr};  // in its place, and of its name, with kv_rank
  FeedForward feed_forward{nullptr};          // of a dense layer; otherwise empty
  MoE moe{nullptr};                           // of the other layers; otherwise empty
  RMSNorm attention_norm{nullptr}, ffn_norm{nullptr};

 private:
  torch::Tensor attend(const torch::Tensor& x, const Positions& positions);
  torch::Tensor feed(const torch::Tensor& x, const torch::Tensor& attended);

  double init_std_;
};
TORCH_MODULE(TransformerBlock);

/// What a forward may have beside its tokens.
struct ForwardOptions {
  KvCache* cache = nullptr;    // positions before those of the tokens, which are added to it
  bool last_position = false;  // logits of the last position alone
  torch::Tensor documents{};   // [B, S] int64: attention stays among positions of equal numbers
};

/// The whole model: tokens to logits.
class TransformerImpl : public torch::nn::Module {
 public:
  /// @param seed   decides every weight; the same on every machine and for every number of threads,
  ///               and, up to rounding, for every dtype.
  /// @param dtype  of the parameters and activations, bf16 or float32. Buffers stay float32: cast
  ///               an existing model with cast_parameters_, since Module::to casts buffers as well.
  /// @param expert_group  over which the experts of each layer are spread, see Experts. What ranks hold
  ///               are parts of the same weights as one process would have.
  /// @param tensor_group  over which attention, dense and shared feed-forward are spread
  ///               (moe8/tensor_parallel.h). Its ranks get the same tokens, and each the logits of its
  ///               positions; the routed experts of each see these tokens alone.
  /// @throws c10::Error when the config or dtype is invalid, the expert group does not divide
  /// n_experts or the tensor group heads and hidden widths.
  explicit TransformerImpl(const TransformerConfig& config, uint64_t seed = 0,
                           at::ScalarType dtype = at::kBFloat16,
                           const Group& expert_group = Group(),
                           const Group& tensor_group = Group());

  /// @param tokens  [B, S] int64, 0 <= token < vocab_size, S <= max_seq_len
  /// @return        [B, S, vocab_size] logits in the model's dtype; of a tensor group those of
  ///                sequence_part(tensor_group(), tokens)
  /// @throws c10::Error when shape or dtype of tokens is wrong.
  torch::Tensor forward(const torch::Tensor& tokens);
  /// With a cache only without gradients, and without a tensor group.
  /// @throws c10::Error also when the cache has no room for the tokens.
  torch::Tensor forward_with(const torch::Tensor& tokens, const ForwardOptions& options);

  /// Fresh weights as at construction, and zero buffers.
  void init_weights(uint64_t seed);
  /// Which activations backward computes again; the first of all is NONE. Only for gradients by
  /// backward(), not by torch::autograd::grad.
  void set_recompute(Recompute recompute) { recompute_ = recompute; }
  const TransformerConfig& config() const { return config_; }
  const Group& tensor_group() const { return tensor_group_; }

  torch::nn::Embedding tok_embeddings{nullptr};
  torch::nn::ModuleList layers{nullptr};
  RMSNorm norm{nullptr};
  torch::nn::Linear output{nullptr};  // with tied_embeddings of their weight, and no parameter

 private:
  std::vector<Positions> positions_of_layers(const torch::Tensor& tokens,
                                             const ForwardOptions& options);

  TransformerConfig config_;
  Group tensor_group_;
  Recompute recompute_ = Recompute::NONE;
  torch::Tensor freqs_;  // [max_seq_len, rotary width / 2] complex64; follows the tokens' device
};
TORCH_MODULE(Transformer);

/// Balances the experts without an auxiliary loss, for every MoE layer below `model`: raises the
/// bias of experts that saw fewer tokens than the average since the last call by
/// load_balance_coeff, lowers the others' likewise, removes the mean step, and zeroes the counts.
/// Call it after each optimizer step; it builds no graph.
void update_expert_bias(torch::nn::Module& model);

/// Sets how much the losses of all routers below `model` weigh in backward: with aux_loss_coeff or
/// z_loss_coeff, a backward through a layer's output that was made in training adds
///
///   weight * (aux_loss_coeff * load_balance_loss + z_loss_coeff * router_z_loss)
///
/// to what is minimized, as if it were part of the loss. 1 unless set; 1 / n for a loss that is
/// divided by n to add up gradients of n batches.
void weigh_router_losses(torch::nn::Module& model, double weight);

/// Casts the parameters below `module` and leaves buffers alone. Parameters keep their identity,
/// so optimizers made before stay valid; their gradients are not cast.
void cast_parameters_(torch::nn::Module& module, at::ScalarType dtype);

}  // namespace moe8
