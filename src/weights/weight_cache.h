// SPDX-License-Identifier: BSD-3-Clause
// Quantized weights that are used again while the weight is unchanged. What counts as unchanged is
// the contract of include/moe8/memory.h; the decision is made here and nowhere else.
#pragma once

#include <ATen/core/Tensor.h>

#include "operand/operand.h"

namespace moe8 {

struct CachedOperand {
  Operand operand;
  bool is_kept;  // its forms outlive this call: worth making those that backward will ask for
  bool is_for_step = false;  // but not longer: what backward does not ask for may be dropped
};

/// While one lives, AUTO keeps forms no longer than until a gradient of their weight is computed: for
/// training that changes its weights after every backward, where forms that wait for another
/// forward would only take memory, as much as the gradients. Of the process; may be nested.
class FormsForOneBackward {
 public:
  /// @param recomputes  forward may be computed once more before its backward
  explicit FormsForOneBackward(bool recomputes);
  ~FormsForOneBackward();
  FormsForOneBackward(const FormsForOneBackward&) = delete;
  FormsForOneBackward& operator=(const FormsForOneBackward&) = delete;

 private:
  bool recomputes_;
};

/// The weight as operand of a forward pass; `for_training`: a backward will follow.
CachedOperand weight_for_forward(const at::Tensor& W, bool for_training);

/// The weight as operand of a backward pass.
Operand weight_for_backward(const at::Tensor& W);

/// Call it when a gradient of W has been computed: an optimizer makes the next change of W.
void note_weight_gradient(const at::Tensor& W);

/// The same of weights that are joined (Operand::joined). Their forms are kept with the first one,
/// while every one of them is unchanged.
CachedOperand weights_for_forward(at::TensorList parts, bool for_training);
Operand weights_for_backward(at::TensorList parts);
void note_weight_gradients(at::TensorList parts);

}  // namespace moe8
