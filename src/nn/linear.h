// SPDX-License-Identifier: BSD-3-Clause
// The products of the model's plain Linears.
#pragma once

#include <torch/nn/modules/linear.h>

namespace moe8 {

/// x W^T, plus the bias where there is one, for x [..., in] and the weight [out, in] of a Linear, as
/// its forward() gives it. bf16 on a CPU without bf16 products, where LibTorch multiplies element by element, is
/// computed on float32 copies instead: the operands are the same numbers, sums are in float32 and
/// rounded once either way, in another order. A converted weight goes to at::linear, where
/// conversion finds it.
torch::Tensor linear(const torch::Tensor& x, torch::nn::Linear& module);

}  // namespace moe8
