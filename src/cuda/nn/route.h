// SPDX-License-Identifier: BSD-3-Clause
// The arithmetic of a router, from logits to each token's experts and scores, and its gradient,
// each in one pass. No Torch. Deterministic; allocate nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "moe8/score_function.h"

namespace moe8::cuda {

inline constexpr int64_t kMostRoutedExperts = 512;
inline constexpr int64_t kMostChosen = 32;

/// What forward and backward read.
struct RouteInputs {
  const void* logits;  // [tokens, experts]
  FloatType type;
  int64_t tokens;
  int64_t experts;  // at most kMostRoutedExperts
  int64_t top_k;    // 1 to experts, at most kMostChosen
  ScoreFunction score_function;
  bool normalize;
  float scale;
};

/// p = score_function(logits) in float32; a token's experts are those with the largest p + bias,
/// largest first, of equal ones the first; NaN counts as the largest. Its scores are
/// scale * p / (1, or the sum of the chosen p, in their order, + 1e-20).
struct RouteArgs : RouteInputs {
  const float* bias;  // [experts], or null
  int64_t* chosen;    // [tokens, top_k]
  float* scores;      // [tokens, top_k]
};
LaunchStatus launch_route(const RouteArgs& args, cudaStream_t stream);

/// From the gradient of the scores that of the logits, in their type.
struct RouteBackwardArgs : RouteInputs {
  const int64_t* chosen;  // as launch_route wrote it
  const float* grad;      // [tokens, top_k]
  void* grad_logits;      // [tokens, experts]
};
LaunchStatus launch_route_backward(const RouteBackwardArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
