// SPDX-License-Identifier: BSD-3-Clause
// Adds what the slices of a contraction gave. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"

namespace moe8::cuda {

/// out[r, c] = ((partial[0, r, c] + partial[1, r, c]) + partial[2, r, c]) + ... in float32, rounded
/// once; or, of float32, what was there plus that.
struct SumSlicesArgs {
  const float* partial;  // [slices, rows, cols], 16-byte aligned
  int slices;
  int64_t rows, cols;
  FloatType output;
  bool adds = false;
  void* out;
  int64_t out_pitch;  // elements from one row to the next
  cudaStream_t stream = nullptr;
};
/// Deterministic; may be captured in a graph.
LaunchStatus launch_sum_slices(const SumSlicesArgs& args);

}  // namespace moe8::cuda
