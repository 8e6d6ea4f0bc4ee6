// SPDX-License-Identifier: BSD-3-Clause
// Has the use of converted weights judged (judge_uses of usage.h) when a backward has ended: what
// triggers it. A trigger costs one atomic load once all weights have been judged.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moe8 {

/// A gradient that reaches `weight` is noted under `id`, and the use of weights judged when that
/// backward has ended. By a hook of the tensor's, which returns the gradient as it is; hooks of
/// others stay. To be called once per conversion, while nobody else uses the tensor. A graph made
/// before the conversion does not count.
void watch_gradient(const at::Tensor& weight, uint64_t id);

/// From within a backward: judges when it has ended.
void judge_after_this_backward();

/// From a forward whose products moe8 leaves to LibTorch: judges when a backward through `result`
/// has ended. For models in which no converted weight takes part at all.
void judge_after_backward_through(const at::Tensor& result);

}  // namespace moe8
