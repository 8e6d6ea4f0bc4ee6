// SPDX-License-Identifier: BSD-3-Clause
// Activation checkpointing: a part of a model that keeps its inputs alone, and is computed once more
// in backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace moe8 {

using RecomputedPart = std::function<at::Tensor(at::TensorList inputs)>;

/// part(inputs), of which autograd keeps nothing but the inputs. Backward computes it again, with the
/// same operations on the same numbers and so in the same bits, and goes back through that;
/// gradients of parameters are added up in their grad().
///
/// Only for backward(): torch::autograd::grad would not see the parameters. Cannot be
/// differentiated twice.
/// @param part    must compute the same each time; what it refers to has to live as long as the graph
at::Tensor recomputed_in_backward(RecomputedPart part, at::TensorList inputs);

/// True while a part is computed for the second time: what counts its calls must not count then.
bool is_recomputing();

}  // namespace moe8
