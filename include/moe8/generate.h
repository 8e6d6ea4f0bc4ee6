// SPDX-License-Identifier: BSD-3-Clause
// Text from a transformer, token by token: keys and values that are kept from position to position,
// and how the next token is chosen of its logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace moe8 {

class TransformerImpl;

/// What one layer keeps of the positions that it has seen, in memory that is taken at the first.
class LayerCache {
 public:
  explicit LayerCache(int64_t capacity) : capacity_(capacity) {}
  int64_t length() const { return length_; }
  /// Adds positions. @return all that are kept, oldest first.
  /// @param first, second  [B, H, S, D] each, of any H and D
  std::pair<at::Tensor, at::Tensor> append(const at::Tensor& first, const at::Tensor& second);

 private:
  at::Tensor first_, second_;  // [B, H, capacity, D]
  int64_t capacity_;
  int64_t length_ = 0;
};

/// Of all layers of a model: keys and values, or with latent attention the kv_rank features and the
/// rotated key that they are made of. A layer with a window keeps every position.
class KvCache {
 public:
  /// @param capacity  positions that there is room for
  explicit KvCache(int64_t capacity) : capacity_(capacity) {}
  /// Positions that are kept.
  int64_t length() const { return layers_.empty() ? 0 : layers_.front().length(); }
  int64_t capacity() const { return capacity_; }

 private:
  friend class TransformerImpl;
  int64_t capacity_;
  std::vector<LayerCache> layers_;
};

/// How a token is chosen.
struct SamplingOptions {
  double temperature = 0;  // logits are divided by it; 0: the token with the largest logit
  int64_t top_k = 0;       // of so many with the largest logits; 0: of all
  double top_p = 1;        // of the fewest likely ones whose probabilities reach it
  uint64_t seed = 0;
};

/// Chooses of the logits [V] the token that stands at `position`; of equal logits that with the
/// smallest number. The same arguments give the same token on every machine whose logits are the
/// same bits. In float64. @throws c10::Error for an option out of range, or logits of which none is
/// finite or some are NaN.
int64_t sample_token(const at::Tensor& logits, const SamplingOptions& options, int64_t position);

/// What generate() does beside choosing tokens.
struct GenerateOptions {
  SamplingOptions sampling{};
  int64_t max_tokens = 128;
  /// Ends after one of these, which is the last that is returned.
  std::vector<int64_t> end_tokens{};
  /// Keep keys and values instead of computing all positions again for every token: the same tokens
  /// up to rounding.
  bool use_cache = true;
  /// Called with every token as it is chosen; false ends the text.
  std::function<bool(int64_t)> on_token{};
};

/// The tokens that follow `prompt`, at most as many as max_seq_len has room for. Builds no graph and
/// leaves the mode of the model as it was.
/// @param prompt  at least one token
/// @throws c10::Error when a token is not below vocab_size or the prompt has max_seq_len tokens.
std::vector<int64_t> generate(TransformerImpl& model, std::span<const int64_t> prompt,
                              const GenerateOptions& options = {});

}  // namespace moe8
