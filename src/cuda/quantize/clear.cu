// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/quantize/clear.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 4;  // of a multiprocessor, at most

__global__ void __launch_bounds__(kThreads) clear(WordRange first, WordRange second) {
  follow_stream();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t begin = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  for (int64_t i = begin; i < first.count; i += step) first.words[i] = 0;
  for (int64_t i = begin; i < second.count; i += step) second.words[i] = 0;
}

}  // namespace

LaunchStatus launch_clear(const WordRange (&ranges)[2], cudaStream_t stream) {
  const auto used = [](const WordRange& r) { return r.words == nullptr ? WordRange{} : r; };
  const WordRange first = used(ranges[0]), second = used(ranges[1]);
  const int64_t longest = std::max(first.count, second.count);
  if (longest == 0) return {};
  const int64_t blocks = std::min(ceil_div(longest, kThreads), kBlocks * multiprocessor_count());
  return launch_early(clear, blocks, kThreads, 0, stream, first, second);
}

}  // namespace moe8::cuda
