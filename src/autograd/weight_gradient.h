// SPDX-License-Identifier: BSD-3-Clause
// The product that gives the gradient of a weight: returned, or added to the weight's sum.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "gemm/low_precision_gemm.h"
#include "weights/gradient_sums.h"

namespace moe8 {

/// To be called in a backward.
/// @param problem  GRAD_WEIGHT of the whole weight, whose dtype it would be rounded to
/// @param sum      of the weight, or expired
/// @return the gradient, or undefined where it was added to the sum. It is returned, too, where
///         not all of what backward reaches is accumulated (torch::autograd::grad) or a second
///         derivative may follow.
at::Tensor weight_gradient(GemmProblem problem, const std::weak_ptr<GradientSum>& sum);

}  // namespace moe8
