// SPDX-License-Identifier: BSD-3-Clause
// Zeros for maxima that are found with atomics. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"

namespace moe8::cuda {

struct WordRange {
  uint32_t* words;  // null: nothing
  int64_t count;
};

/// Both ranges become 0, in one launch. Unlike cudaMemsetAsync it starts early (cuda/launch.cuh).
LaunchStatus launch_clear(const WordRange (&ranges)[2], cudaStream_t stream);

inline LaunchStatus launch_clear(uint32_t* words, int64_t count, cudaStream_t stream) {
  return launch_clear({{words, count}, {nullptr, 0}}, stream);
}

}  // namespace moe8::cuda
