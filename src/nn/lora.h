// SPDX-License-Identifier: BSD-3-Clause
// Adapters of Linears, where products look for them.
#pragma once

#include <torch/nn/modules/linear.h>

namespace moe8 {

/// `out` and what the module's adapter adds for x, where add_lora() gave it one.
torch::Tensor with_lora(const torch::Tensor& out, const torch::Tensor& x,
                        const torch::nn::Linear& module);

}  // namespace moe8
