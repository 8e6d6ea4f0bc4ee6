// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/quantize/clear.h"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 4;  // of a multiprocessor, at most

__global__ void __launch_bounds__(kThreads) clear(uint32_t* words, int64_t count) {
  follow_stream();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += step) words[i] = 0;
}

}  // namespace

LaunchStatus launch_clear(uint32_t* words, int64_t count, cudaStream_t stream) {
  if (count == 0) return {};
  const int64_t blocks =
      std::min((count + kThreads - 1) / kThreads, kBlocks * multiprocessor_count());
  return launch_early(clear, blocks, kThreads, 0, stream, words, count);
}

}  // namespace moe8::cuda
