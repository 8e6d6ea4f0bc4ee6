// SPDX-License-Identifier: BSD-3-Clause
#include "reference/muon.h"

#include "reference/element.h"

namespace moe8::reference {

void muon_directions(const MuonDirections& a, int64_t n) {
  const bool go = a.norm == nullptr || std::isfinite(*a.norm);
  const float clip = a.norm == nullptr ? 1.0f : clip_factor(*a.norm, a.rule.max_norm);
  for (int64_t i = 0; i < n; ++i) {
    if (!go) {
      a.direction[i] = from_float<BFloat16>(0.0f);
      continue;
    }
    const MuonElement next = muon_direction(load(a.momentum, a.momentum_type, i),
                                            load(a.grad, a.grad_type, i), clip, a.rule);
    store(a.momentum, a.momentum_type, i, next.momentum);
    a.direction[i] = from_float<BFloat16>(next.direction);
  }
}

void muon_weights(const MuonWeights& a, int64_t n) {
  if (a.norm != nullptr && !std::isfinite(*a.norm)) return;
  for (int64_t i = 0; i < n; ++i) {
    const float next =
        muon_weight(load(a.weight, a.weight_type, i), to_float(a.direction[i]), a.scalars);
    store(a.weight, a.weight_type, i, next);
    if (a.copy != nullptr) a.copy[i] = from_float<BFloat16>(next);
  }
}

}  // namespace moe8::reference
