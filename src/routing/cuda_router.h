// SPDX-License-Identifier: BSD-3-Clause
// The router's arithmetic by the kernels of src/cuda/nn/, below autograd. What it computes is said
// in moe8/routing.h; in a build without CUDA none of these is ever chosen.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "moe8/routing.h"

namespace moe8 {

/// A part of a Routing.
struct RoutedTokens {
  at::Tensor experts;  // [T, top_k] int64
  at::Tensor scores;   // [T, top_k] float32
};

/// Nothing when the kernels take it, else why LibTorch's operations do.
std::optional<std::string> cuda_router_refusal(const at::Tensor& logits,
                                               const RouterOptions& options);

/// @param bias  [E] floating-point, or undefined
RoutedTokens cuda_route(const at::Tensor& logits, const RouterOptions& options,
                        const at::Tensor& bias);

/// @param grad  of the scores
/// @return      of the logits
at::Tensor cuda_route_backward(const at::Tensor& logits, const RouterOptions& options,
                               const at::Tensor& experts, const at::Tensor& grad);

}  // namespace moe8
