// SPDX-License-Identifier: BSD-3-Clause
// What `--recipe NAME` converts in the transformer of moe.h: the one table of it.
#pragma once

#include <string>
#include <vector>

#include "convert/conversion_rules.h"
#include "moe8/transformer_config.h"

namespace moe8 {

/// "bf16", which converts nothing, and every recipe of config.h.
std::vector<std::string> training_recipes();

/// A recipe of experts converts the routed experts, and the Linears of attention, feed_forward and
/// shared_experts with the linear recipe of the same arithmetic. A recipe of Linears converts those
/// Linears only. Router gates, embeddings and the output projection always stay as they are.
/// @throws c10::Error for an unknown name; all names are listed.
std::vector<ConversionRule> recipe_rules(const std::string& name);

/// The rules of a recipe, but Linears of fewer than 2^20 elements stay as they are. Measured on an
/// H200 in fp8_rowwise with 16,384 tokens: with Linears of 768 x 768 in bf16 a step is 4.6 %
/// shorter, with those of 2048 x 512 and more 2.7 % longer (docs/benchmarking.md).
std::vector<ConversionRule> without_small_linears(const std::vector<ConversionRule>& rules,
                                                  const TransformerConfig& config);

}  // namespace moe8
