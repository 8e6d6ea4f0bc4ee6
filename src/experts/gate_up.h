// SPDX-License-Identifier: BSD-3-Clause
// W13, the weights of gate and up as one operand of the products.
#pragma once

#include <ATen/core/Tensor.h>

#include "weights/weight_cache.h"

namespace moe8 {

/// W13 (E, 2h, d): w1 by itself where w3 is undefined, else w1 and w3 (E, h, d) one after the other.
struct GateUpWeights {
  at::Tensor w1;
  at::Tensor w3;

  bool are_joined() const { return !w3.defined(); }
};

/// As weight_for_forward and weight_for_backward of weights/weight_cache.h.
CachedOperand gate_up_for_forward(const GateUpWeights& weights, bool for_training);
Operand gate_up_for_backward(const GateUpWeights& weights);

}  // namespace moe8
