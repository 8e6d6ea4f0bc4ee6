// SPDX-License-Identifier: BSD-3-Clause
#include "experts/gate_up.h"

#include <ATen/ops/cat.h>

namespace moe8 {
namespace {

// The only place that joins two weights, by a copy of both.
at::Tensor joined(const GateUpWeights& weights) {
  return at::cat({weights.w1.detach(), weights.w3.detach()}, 1);
}

}  // namespace

CachedOperand gate_up_for_forward(const GateUpWeights& weights, bool for_training) {
  if (weights.are_joined()) return weight_for_forward(weights.w1, for_training);
  return {Operand(joined(weights)), false};
}

Operand gate_up_for_backward(const GateUpWeights& weights) {
  if (weights.are_joined()) return weight_for_backward(weights.w1);
  return joined(weights);
}

}  // namespace moe8
