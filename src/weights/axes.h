// SPDX-License-Identifier: BSD-3-Clause
// Which axes of a tensor run along whole rows (or columns) of a converted weight's matrices. Only
// over those may a product contract in low precision: not over experts, nor over weights that were
// put side by side, whose rows would share their scales.
#pragma once

#include <ATen/core/TensorBase.h>

#include <bitset>
#include <cstdint>

namespace moe8 {

/// Bit i: axis i. No tensor of LibTorch has more axes than fit.
using AxisSet = std::bitset<64>;

/// Of a weight as it is converted, [N, K] or [E, N, K] in any order of the last two: the last two.
AxisSet matrix_axes(int64_t dim);

/// Of `view`, which shares the memory of `weight`: the axes that lie within one of `axes` of it. An
/// axis that runs over several of the weight's axes, or repeats, is none of these; a part of one
/// is: it is a shorter row.
AxisSet axes_of_view(const at::TensorBase& weight, AxisSet axes, const at::TensorBase& view);

}  // namespace moe8
