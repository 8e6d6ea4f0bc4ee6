// SPDX-License-Identifier: BSD-3-Clause
// Which weights of a model get adapters, what these are called and how large they are. No Torch.
#pragma once

#include <string>
#include <vector>

#include "moe8/lora.h"

namespace moe8 {

inline constexpr const char* kLoraA = "lora_a";
inline constexpr const char* kLoraB = "lora_b";

/// The weights that options.targets name. @throws c10::Error as lora_shapes().
std::vector<ParameterShape> lora_targets(const TransformerConfig& config,
                                         const LoraOptions& options);

/// What stands before lora_a: of "layers.0.attention.wq.weight" "layers.0.attention.wq.", of
/// "layers.1.moe.experts.w1" "layers.1.moe.experts.w1_"; nothing of what can have no adapter.
std::string lora_beginning(const std::string& weight);

/// Shapes of A and B beside a weight of this one.
struct LoraShape {
  std::vector<int64_t> a, b;
};
LoraShape lora_shape(const std::vector<int64_t>& weight, int64_t rank);

}  // namespace moe8
