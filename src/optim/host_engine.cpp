// SPDX-License-Identifier: BSD-3-Clause
// The formulas of src/kernels/muon.h with LibTorch's roundings. The norm is read on the host.
#include "optim/host_engine.h"

#include <ATen/TensorOperators.h>

#include <cmath>

namespace moe8 {

void HostOptimEngine::muon_directions(const MuonRule& rule, const std::vector<MuonItem>& items,
                                      const std::vector<at::Tensor>& directions,
                                      const at::Tensor& norm) {
  const float value = norm.defined() ? norm.item<float>() : 0;
  const float clip = norm.defined() ? clip_factor(value, rule.max_norm) : 1;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!std::isfinite(value)) {
      directions[i].zero_();
      continue;
    }
    const at::Tensor grad = items[i].grad.to(at::kFloat) * clip;
    const at::Tensor momentum = items[i].momentum.to(at::kFloat) * rule.momentum + grad;
    directions[i].copy_(grad + momentum * rule.momentum);
    items[i].momentum.copy_(momentum);
  }
}

void HostOptimEngine::muon_weights(const std::vector<MuonItem>& items,
                                   const std::vector<at::Tensor>& directions,
                                   const at::Tensor& norm) {
  if (norm.defined() && !std::isfinite(norm.item<float>())) return;
  for (size_t i = 0; i < items.size(); ++i) {
    const MuonItem& item = items[i];
    const MuonScalars s = muon_scalars(learning_rate_, item.weight_decay, muon_scale(item.weight));
    item.weight.copy_(item.weight.to(at::kFloat) * s.decay - directions[i].to(at::kFloat) * s.size);
    if (item.copy.defined()) item.copy.copy_(item.weight);
  }
}

}  // namespace moe8
