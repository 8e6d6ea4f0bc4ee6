// SPDX-License-Identifier: BSD-3-Clause
// What moe8's autograd functions have in common: the state in which they compute, and what they do
// beside computing.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/variable.h>

#include <string>

#include "gemm/low_precision_gemm.h"
#include "weights/inside_product.h"

namespace moe8 {

/// Below autograd and autocast: the products inside are ours, and must not be seen by the hooks
/// that brought us here (the saved weight is still a converted one).
struct PlainOps {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  InsideProduct inside;
};

/// The form of an operand that the product's kernel will read.
FormKey left_key(const GemmProblem& problem);
FormKey right_key(const GemmProblem& problem);

/// Gradients that were asked for with create_graph get a node that refuses to be differentiated
/// again, with `message`; without it second-order terms would vanish silently.
void forbid_double_backward(torch::autograd::variable_list& grads, const std::string& message);

/// Notes that a product of the weight, if it is a converted one, runs in low precision.
void note_use(const at::Tensor& W);

}  // namespace moe8
