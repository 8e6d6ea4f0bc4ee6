// SPDX-License-Identifier: BSD-3-Clause
#include "train/expert_load.h"

#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "numerics/bounds.h"

namespace moe8 {
namespace {

constexpr int64_t kMinSteps = 10;    // for so many an expert may well get nothing
constexpr double kMinMeanRows = 16;  // of an expert in them, on average: likewise

}  // namespace

std::vector<at::Tensor> expert_counts(TransformerImpl& model) {
  std::vector<at::Tensor> counts;
  for (const auto& module : model.modules()) {
    if (const auto* layer = module->as<MoEImpl>()) counts.push_back(layer->tokens_per_expert);
  }
  return counts;
}

std::vector<ExpertTokens> expert_tokens(TransformerImpl& model, std::span<const double> counts) {
  std::vector<ExpertTokens> layers;
  for (const auto& module : model.named_modules()) {
    const auto* layer = module.value()->as<MoEImpl>();
    if (!layer) continue;
    ExpertTokens& tokens = layers.emplace_back();
    tokens.fqn = module.key() + ".experts";
    tokens.top_k = model.config().top_k;
    const auto experts = static_cast<size_t>(layer->tokens_per_expert.numel());
    for (const double count : counts.first(experts)) {
      tokens.tokens.push_back(static_cast<int64_t>(count));
    }
    counts = counts.subspan(experts);
  }
  return layers;
}

void add_loads(StepMetrics& metrics, const std::vector<ExpertTokens>& layers) {
  metrics.expert_load_min = metrics.expert_load_max = 1;
  for (const ExpertTokens& layer : layers) {
    metrics.expert_load_min = std::min(metrics.expert_load_min, layer.min_over_mean());
    metrics.expert_load_max = std::max(metrics.expert_load_max, layer.max_over_mean());
    metrics.layers.push_back({layer.max_over_mean(), std::ranges::count(layer.tokens, 0)});
  }
}

std::vector<at::Tensor> router_losses(TransformerImpl& model) {
  std::vector<at::Tensor> losses;
  for (const auto& module : model.modules()) {
    const auto* layer = module->as<MoEImpl>();
    if (layer && layer->router_losses.defined()) losses.push_back(layer->router_losses);
  }
  return losses;
}

void add_router_losses(StepMetrics& metrics, std::span<const double> sums, int64_t batches) {
  if (sums.empty()) return;
  double balance = 0, z = 0;
  for (size_t i = 0; i + 1 < sums.size(); i += 2) balance += sums[i], z += sums[i + 1];
  const double count = static_cast<double>(sums.size()) / 2 * static_cast<double>(batches);
  metrics.aux_loss = balance / count;
  metrics.z_loss = z / count;
}

void StarvedExperts::add(const std::vector<ExpertTokens>& layers) {
  ++steps_;
  if (sums_.empty()) {
    sums_ = layers;
    return;
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t e = 0; e < layers[l].tokens.size(); ++e) sums_[l].tokens[e] += layers[l].tokens[e];
  }
}

std::vector<NumericsWarning> StarvedExperts::take() {
  std::vector<NumericsWarning> warnings;
  const auto bound = default_bound(NumericsQuantity::STARVED_EXPERTS, {});
  if (steps_ < kMinSteps || !bound) return warnings;
  for (const ExpertTokens& layer : sums_) {
    const auto count = static_cast<double>(std::ranges::count(layer.tokens, 0));
    if (layer.mean() < kMinMeanRows || count <= bound->most) continue;
    warnings.push_back({layer.fqn, NumericsQuantity::STARVED_EXPERTS, count, *bound});
  }
  sums_.clear();
  steps_ = 0;
  return warnings;
}

}  // namespace moe8
