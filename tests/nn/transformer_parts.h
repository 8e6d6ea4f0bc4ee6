// SPDX-License-Identifier: BSD-3-Clause
// A transformer whose dense weights are spread over a tensor group, on CPUs or GPUs, against one that
// has them whole.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>

#include "base/check.h"
#include "moe8/parallel.h"
#include "moe8/quantize_model.h"
#include "moe8/tensor_parallel.h"
#include "moe8/transformer.h"
#include "nn/transformer_step.h"

namespace moe8::testing {

inline ParallelLayout all_tensor(int64_t world) {
  return {.tensor = world};
}

inline TransformerConfig small_config() {
  TransformerConfig config;
  config.vocab_size = 64;
  config.dim = 64;
  config.n_layers = 3;
  config.n_heads = config.n_kv_heads = 4;
  config.max_seq_len = 32;
  config.dense_hidden_dim = 128;
  config.n_experts = 8;
  config.top_k = 3;
  config.hidden_dim = 128;
  config.qk_norm = QkNorm::HEAD;
  return config;
}

// What this rank holds of the whole tensor of that name.
inline at::Tensor held_of(const std::string& name, const at::Tensor& whole, const Group& group) {
  const TensorSplit split = tensor_split(name);
  if (split == TensorSplit::NONE) return whole;
  return sequence_part(group, whole, split == TensorSplit::COLUMN_PARALLEL ? 0 : 1);
}

// Made on the CPU: the same weights everywhere.
inline Transformer small_transformer(const std::string& recipe, const at::Device& device,
                                     const Group& tensor_group,
                                     const TransformerConfig& config = small_config()) {
  Transformer model(config, 7, at::kBFloat16, Group(), tensor_group);
  if (!device.is_cpu()) model->to(device);
  if (recipe == "bf16") return model;
  const bool fp8 = recipe == "fp8_rowwise";
  quantize_(*model, {{"re:.*\\.moe\\.experts\\.w[123]",
                      fp8 ? Config(FP8GroupedMMConfig{}) : Config(MXFP8GroupedMMConfig{})},
                     {"re:layers\\..*\\.(w[qkvo123])\\.weight",
                      fp8 ? Config(Float8LinearConfig{}) : Config(MXLinearConfig{})}});
  return model;
}

// Loss and gradients of a step with each recipe. Sums over features are made in parts that are rounded
// to bf16, and FP8 scales of what is contracted over split features are those of a part: bounds as of
// experts over ranks.
inline void compare_with_whole_transformer(Parallel& p,
                                           const TransformerConfig& config = small_config()) {
  const Group& group = p.tensor();
  torch::manual_seed(3);
  const at::Tensor tokens = at::randint(64, {2, 17}, at::kLong).to(p.device());
  for (const std::string recipe : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    SCOPED_TRACE(recipe);
    Transformer one = small_transformer(recipe, p.device(), Group(), config);
    Transformer mine = small_transformer(recipe, p.device(), group, config);
    const Step whole = step(one, tokens);
    const Step part = step(mine, tokens);
    const at::Tensor loss = at::full({}, part.loss, at::kDouble);
    all_reduce_(group, loss);
    EXPECT_NEAR(loss.item<double>() / whole.loss, 1, 2e-3);
    for (const auto& [name, grad] : part.grads) {
      at::Tensor sum = grad.to(at::kFloat);
      if (tensor_split(name) == TensorSplit::NONE) all_reduce_(group, sum);
      const at::Tensor expected = held_of(name, whole.grads.at(name), group);
      EXPECT_LT(relative_error(sum, expected), recipe == "bf16" ? 0.05 : 0.25) << name;
    }
    EXPECT_TRUE(check_conversion(*mine).to_line().empty());
    for (const Recompute recompute : {Recompute::SELECTIVE, Recompute::FULL}) {
      mine->set_recompute(recompute);
      EXPECT_EQ(step(mine, tokens).loss, part.loss);
    }
  }
}

}  // namespace moe8::testing
