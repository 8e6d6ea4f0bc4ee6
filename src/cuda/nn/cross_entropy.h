// SPDX-License-Identifier: BSD-3-Clause
// The loss of logits and its gradient, each one pass over the logits. No Torch. Reference:
// src/reference/model.h. Deterministic, allocate nothing, never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"

namespace moe8::cuda {

/// Logits and their targets. A row takes part unless its target is `ignored`; one whose target is
/// neither that nor in [0, columns) has the loss NaN, and gradients of NaN.
struct CrossEntropyRows {
  const void* logits;  // [rows, columns], contiguous
  FloatType type;
  int64_t rows;
  int64_t columns;
  const int64_t* targets;  // [rows]
  int64_t ignored;
};

/// In float32:
///   lse[r]      = max + log(sum of exp(x - max)) of row r
///   row_loss[r] = lse[r] - x[target], 0 for rows that take no part
///   loss        = sum of row_loss / *divisor, summed in float64, always in the same order
/// Cost floor: the logits read once.
struct CrossEntropyArgs : CrossEntropyRows {
  float* lse;       // [rows]
  float* row_loss;  // [rows]
  float* loss;      // one
  /// What the sum is divided by, one. With `count_rows` the number of rows that take part is
  /// written here first, so that the loss is their mean: NaN when there is none.
  float* divisor;
  bool count_rows = true;
};
LaunchStatus launch_cross_entropy(const CrossEntropyArgs& args, cudaStream_t stream);

/// grad[r, c] = (exp(x - lse[r]) - (c == target)) * (*grad_loss / *divisor) in float32, rounded to
/// the type of the logits; exact zeros in rows that take no part. `grad` may be `logits`.
/// Cost floor: the logits read once, the gradient written once.
struct CrossEntropyBackwardArgs : CrossEntropyRows {
  const float* lse;
  const float* divisor;
  const float* grad_loss;  // one
  void* grad;              // [rows, columns]
};
LaunchStatus launch_cross_entropy_backward(const CrossEntropyBackwardArgs& args,
                                           cudaStream_t stream);

}  // namespace moe8::cuda
