// SPDX-License-Identifier: BSD-3-Clause
// A tensor's one scale as the scale of each of its rows, as products read them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"

namespace moe8::native {

/// out[i] = *one for i in [0, count).
cuda::LaunchStatus launch_repeat(const float* one, float* out, int64_t count, cudaStream_t stream);

}  // namespace moe8::native
