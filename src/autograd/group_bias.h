// SPDX-License-Identifier: BSD-3-Clause
// The bias of experts and its gradient, in LibTorch's operations: on every device, without a wait
// of the host for the device.
#pragma once

#include <ATen/core/Tensor.h>

#include "groups/token_groups.h"

namespace moe8 {

/// out[m, :] += bias[e(m), :], in place, in the dtype of out; rows in no group stay as they are.
/// @param out   [M, N] bf16 or float32
/// @param bias  [E, N] of any floating-point dtype, on the same device
void add_group_bias(const at::Tensor& out, const at::Tensor& bias, const TokenGroups& groups);

/// sums[e, :] = sum over the rows m of group e of x[m, :]
/// @param x  [M, N] bf16 or float32
/// @return   [E, N] float32; 0 for an empty group. Rows in no group add nothing, NaN included.
/// Deterministic: each group is cut into pieces of 256 rows and less, and pieces and their sums are
/// added up in order, in float32. The rounding error grows with the length of a piece and their
/// number, not with their product.
at::Tensor group_sums(const at::Tensor& x, const TokenGroups& groups);

}  // namespace moe8
