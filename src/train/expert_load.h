// SPDX-License-Identifier: BSD-3-Clause
// How the rows of a step were spread over the experts of a model.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe8/numerics.h"
#include "moe8/transformer.h"
#include "train/store/metrics.h"

namespace moe8 {

/// Of every MoE layer, in order, the rows that its experts got since the last update_expert_bias:
/// [experts] float32 on the model's device.
std::vector<at::Tensor> expert_counts(TransformerImpl& model);

/// The same with names. @param counts  the values of expert_counts, one layer after the other
std::vector<ExpertTokens> expert_tokens(TransformerImpl& model, std::span<const double> counts);

/// The same, as the step's line of metrics.jsonl says it.
void add_loads(StepMetrics& metrics, const std::vector<ExpertTokens>& layers);

/// Of every MoE layer with losses of its router, in order, their sums since the last
/// update_expert_bias: [2] float32, balance and z. Empty for models without.
std::vector<at::Tensor> router_losses(TransformerImpl& model);

/// Means over layers and batches, as the step's line of metrics.jsonl says them.
/// @param sums     the values of router_losses, one layer after the other
/// @param batches  that were added up
void add_router_losses(StepMetrics& metrics, std::span<const double> sums, int64_t batches);

/// Finds experts that got no row for a while.
class StarvedExperts {
 public:
  /// Counts one step.
  void add(const std::vector<ExpertTokens>& layers);
  /// A warning for every layer with experts that got no row since the call before; none when that
  /// was only a few steps ago, whose counts then go on.
  std::vector<NumericsWarning> take();

 private:
  std::vector<ExpertTokens> sums_;
  int64_t steps_ = 0;
};

}  // namespace moe8
