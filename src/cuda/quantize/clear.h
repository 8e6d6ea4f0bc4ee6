// SPDX-License-Identifier: BSD-3-Clause
// Zeros for maxima that are found with atomics. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"

namespace moe8::cuda {

/// words[0 .. count) = 0. Unlike cudaMemsetAsync it starts early (cuda/launch.cuh).
LaunchStatus launch_clear(uint32_t* words, int64_t count, cudaStream_t stream);

}  // namespace moe8::cuda
