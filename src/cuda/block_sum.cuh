// SPDX-License-Identifier: BSD-3-Clause
// Sums over the threads of a block.
#pragma once

#include <cuda_runtime.h>

namespace moe8::cuda {

/// The sum over a block of kThreads, always in the same order, in every thread. All threads call it.
template <int kThreads>
__device__ float block_sum(float value) {
  __shared__ float shared[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) {
    value = __fadd_rn(value, __shfl_xor_sync(~0u, value, step));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (const float other : shared) sum = __fadd_rn(sum, other);
  return sum;
}

}  // namespace moe8::cuda
