// SPDX-License-Identifier: BSD-3-Clause
// RMSNorm, alone or of a sum, and its gradients. No Torch. Reference: src/reference/model.h.
// Deterministic, allocate nothing, never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"

namespace moe8::cuda {

/// Matrices [rows, columns], contiguous; all of one type, the weight as well.
///   h    = x, or with `added` x + added, rounded to the type and written to `sum`
///   rstd = 1 / sqrt(mean of h^2 over the row + eps), in float32
///   out  = h * rstd * weight, in float32, rounded once
/// Cost floor: x, and what is added, read once, results written once.
struct RmsNormArgs {
  const void* x;
  const void* added = nullptr;
  void* sum = nullptr;  // given with `added`
  const void* weight;   // [columns]
  FloatType type;
  int64_t rows;
  int64_t columns;
  float eps;
  void* out;
  float* rstd;  // [rows]; null: not wanted
};
LaunchStatus launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream);

/// From grad, the gradient of out, and grad_sum, one that h has from elsewhere, in float32:
///   g           = grad * weight
///   grad_x      = rstd * (g - h * rstd^2 * mean of g * h over the row) + grad_sum, rounded once
///   grad_weight = sum over rows of grad * h * rstd, rounded once
/// The sum over rows is that of parts whose number depends on `rows`, `columns` and `type` alone:
/// in whatever order blocks run, and on whatever GPU, its bits are the same.
/// Cost floor: h, grad and grad_sum read once, grad_x written once.
struct RmsNormBackwardArgs {
  const void* h;
  const void* weight;
  const float* rstd;
  const void* grad;
  const void* grad_sum = nullptr;
  FloatType type;
  int64_t rows;
  int64_t columns;
  void* grad_x;
  void* grad_weight;  // [columns]
  float* workspace;   // rms_norm_workspace() floats
};
int64_t rms_norm_workspace(const RmsNormBackwardArgs& args);
LaunchStatus launch_rms_norm_backward(const RmsNormBackwardArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
