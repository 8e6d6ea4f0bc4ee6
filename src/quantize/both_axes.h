// SPDX-License-Identifier: BSD-3-Clause
// Values of a tensor quantized along its last axis and along the one before it: the two forms in
// which an operand is needed by the products of forward and backward. MX makes both in one pass
// over the tensor, Float8 in a pass each.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moe8/config.h"

namespace moe8 {

struct BothAxes {
  at::Tensor last;         // quantized along the last axis
  at::Tensor before_last;  // along the one before, in each group when there are groups
};

/// {fake_quantize_mx(x, elem, mode, -1, nullopt, dtype), fake_quantize_mx(x, elem, mode, -2, offs,
/// dtype)}, bit for bit. x has at least two dimensions.
BothAxes fake_quantize_mx_both(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                               const std::optional<at::Tensor>& offs, at::ScalarType dtype);

/// {fake_quantize_float8(x, axiswise(-1), elem, pow2, nullopt, dtype), fake_quantize_float8(x,
/// axiswise(-2), elem, pow2, offs, dtype)}, bit for bit. x has at least two dimensions.
BothAxes fake_quantize_float8_both(const at::Tensor& x, ElemDtype elem,
                                   bool round_scales_to_power_of_2,
                                   const std::optional<at::Tensor>& offs, at::ScalarType dtype);

}  // namespace moe8
