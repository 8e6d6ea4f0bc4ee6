// SPDX-License-Identifier: BSD-3-Clause
// What the kernels of RMSNorm share: the arithmetic of an element, and the second stage of the
// weight's gradient. Every operation is spelled out.
#pragma once

#include "cuda/nn/packets.cuh"
#include "cuda/nn/rms_norm.h"

namespace moe8::cuda {

/// Parts of the weight's gradient: enough for every GPU to be full.
constexpr int kNormParts = 264;

__device__ inline float inverse_root(float squares, int64_t columns, float eps) {
  return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(columns)), eps)));
}

/// What a row's gradients have in common.
struct NormGradient {
  float rstd;
  float slope;  // rstd^2 * mean of g * h

  __device__ NormGradient(float inverse, float product, int64_t columns) : rstd(inverse) {
    const float mean = __fdiv_rn(product, static_cast<float>(columns));
    slope = __fmul_rn(__fmul_rn(mean, inverse), inverse);
  }
  __device__ float of_x(float g, float h, float grad_sum) const {
    return __fmaf_rn(rstd, __fmaf_rn(-h, slope, g), grad_sum);
  }
  /// Of the weight, added to what other rows gave.
  __device__ float of_weight(float grad, float h, float sum) const {
    return __fmaf_rn(grad, __fmul_rn(h, rstd), sum);
  }
};

/// Any number of columns, any address. `workspace` gets kNormParts parts.
LaunchStatus launch_any_rms_norm(const RmsNormArgs& args, cudaStream_t stream);
LaunchStatus launch_any_rms_norm_backward(const RmsNormBackwardArgs& args, cudaStream_t stream);

/// grad_weight from `parts` rows [columns] of the workspace.
LaunchStatus launch_sum_of_parts(const RmsNormBackwardArgs& args, int64_t parts,
                                 cudaStream_t stream);

}  // namespace moe8::cuda
