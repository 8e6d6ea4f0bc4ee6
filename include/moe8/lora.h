// SPDX-License-Identifier: BSD-3-Clause
// LoRA (arXiv 2106.09685): a model stays as it is, and beside some of its weights W [out, in] two small
// ones are trained, y = x W^T + alpha / rank (x A^T) B^T. W may be converted; A and B are not.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe8/transformer_config.h"

namespace moe8 {

class TransformerImpl;

/// Which weights get adapters, and of what size.
struct LoraOptions {
  int64_t rank = 8;
  double alpha = 16;
  /// Names of weights, or "re:" and a pattern of whole names: Linears of attention, dense and shared
  /// feed-forward, and stacks of routed experts, of which each expert gets its own.
  std::vector<std::string> targets{"re:.*\\.attention\\.w([qkvo]|k?[qv]_[ab])\\.weight",
                                   "re:.*\\.moe\\.experts\\.w[123]"};
};

/// The adapters that a model of this config would get. Of "layers.0.attention.wq.weight" they are
/// "layers.0.attention.wq.lora_a" [rank, in] and "...lora_b" [out, rank], of "layers.1.moe.experts.w1"
/// "layers.1.moe.experts.w1_lora_a" [E, rank, in] and "...w1_lora_b" [E, out, rank].
/// @throws c10::Error for a target that names no weight, or one that cannot have adapters; for a rank
///         below 1, or above the longer side of a weight.
std::vector<ParameterShape> lora_shapes(const TransformerConfig& config,
                                        const LoraOptions& options);

/// Adds them to a model and freezes all that it has besides: no other parameter requires a gradient.
/// A begins at random, by the seed, B with zeros, so that at first the model computes what it did. Of
/// experts over several ranks each adds those of its own.
/// @throws c10::Error as lora_shapes(), for a model that has adapters, or one of a tensor group.
void add_lora(TransformerImpl& model, const LoraOptions& options, uint64_t seed = 0);

/// A weight with its adapter added to it, W + alpha / rank B A, in float32, rounded to W's dtype; or W
/// as it is where there is none.
/// @param name    of the weight
/// @param has     whether there is a tensor of a name
/// @param tensor  gives one
at::Tensor merged_lora(const std::string& name, const LoraOptions& options,
                       const std::function<bool(const std::string&)>& has,
                       const std::function<at::Tensor(const std::string&)>& tensor);

}  // namespace moe8
