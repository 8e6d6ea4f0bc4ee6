// SPDX-License-Identifier: BSD-3-Clause
// The norm of all gradients, and gradients added up in float32. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "kernels/adamw.h"

namespace moe8::cuda {

struct Gradient {
  const void* data;
  FloatType type;
  int64_t elements;
};

/// Floats that launch_gradient_norm needs as room.
int64_t gradient_norm_sums(std::span<const Gradient> gradients);

/// norm[0] = the root of the sum of all squares, as src/reference/adamw.cpp computes it from the
/// runs of kNormChunk elements of each gradient in order, bit for bit. A launch of 48 gradients,
/// and one more; deterministic, no atomics, never waits for the host.
LaunchStatus launch_gradient_norm(std::span<const Gradient> gradients, float* sums, float* norm,
                                  cudaStream_t stream);

/// Its two halves: the sums of squares of all runs, and the norm of `count` such sums.
LaunchStatus launch_gradient_squares(std::span<const Gradient> gradients, float* sums,
                                     cudaStream_t stream);
LaunchStatus launch_norm_of_squares(const float* sums, int64_t count, float* norm,
                                    cudaStream_t stream);

/// out = a + b in float32; `out` may be `a`.
struct GradientSum {
  const void* a;
  FloatType a_type;
  const void* b;
  FloatType b_type;
  float* out;
  int64_t elements;
};

LaunchStatus launch_gradient_sums(std::span<const GradientSum> sums, cudaStream_t stream);

}  // namespace moe8::cuda
