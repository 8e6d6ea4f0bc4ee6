// SPDX-License-Identifier: BSD-3-Clause
#include "repeat.h"

namespace moe8::native {
namespace {

constexpr int kThreads = 256;

__global__ void repeat(const float* one, float* out, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) out[i] = *one;
}

}  // namespace

cuda::LaunchStatus launch_repeat(const float* one, float* out, int64_t count, cudaStream_t stream) {
  if (count == 0) return {};
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  repeat<<<blocks, kThreads, 0, stream>>>(one, out, count);
  return {cudaGetLastError(), "repeat"};
}

}  // namespace moe8::native
