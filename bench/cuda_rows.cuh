// SPDX-License-Identifier: BSD-3-Clause
// What the benchmarks of memory-bound kernels share: tables of launches that are timed in turn, and
// copies to hold them to. Stand-alone, without Torch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/launch_status.h"
#include "formats/float_type.h"

namespace moe8::cuda {

using Memory = testing::DeviceBuffer<uint8_t>;

inline constexpr int kRounds = 25;
inline constexpr int kWarmup = 3;

// Random normal numbers: zeros would let the chip run cooler and faster than data do.
template <typename T>
__global__ void fill_normal(T* x, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += step) {
    uint64_t z = static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z ^= z >> 27;
    const float u = (static_cast<float>(z & 0xFFFFFF) + 1.0f) / 16777216.0f;
    const float v = static_cast<float>(z >> 40) / 16777216.0f;
    x[i] = from_float<T>(sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v));
  }
}

inline __global__ void __launch_bounds__(256) copy_kernel(const uint4* x, uint4* y, int64_t count) {
  const int64_t first = blockIdx.x * int64_t{1024} + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i * 256 < count) v[i] = __ldcs(x + first + i * 256);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i * 256 < count) __stcs(y + first + i * 256, v[i]);
  }
}

struct Row {
  std::string name;
  double bytes;
  std::function<LaunchStatus()> launch;
  std::vector<float> ms;
};

/// Interleaves the rows, so that all see the same temperatures and clocks.
inline void time_rows(std::vector<Row>& rows) {
  cudaEvent_t begin, end;
  testing::require(cudaEventCreate(&begin), "event");
  testing::require(cudaEventCreate(&end), "event");
  for (int round = -kWarmup; round < kRounds; ++round) {
    for (Row& row : rows) {
      testing::require(cudaEventRecord(begin), "record");
      testing::require(row.launch(), row.name.c_str());
      testing::require(cudaEventRecord(end), "record");
      testing::require(cudaEventSynchronize(end), row.name.c_str());
      float ms = 0;
      testing::require(cudaEventElapsedTime(&ms, begin, end), "elapsed");
      if (round >= 0) row.ms.push_back(ms);
    }
  }
  testing::require(cudaEventDestroy(begin), "event");
  testing::require(cudaEventDestroy(end), "event");
}

inline void print_rows(const std::string& shape, std::vector<Row>& rows) {
  const auto rate = [](Row& row) {
    std::sort(row.ms.begin(), row.ms.end());
    return row.bytes / row.ms[row.ms.size() / 2] * 1e-6;
  };
  const double memcpy_rate = rate(rows[0]), copy_rate = rate(rows[1]);
  for (Row& row : rows) {
    const double r = rate(row);
    std::printf("%-22s| %-30s| %8.4f (%.4f-%.4f) ms | %5.0f GB/s | %4.0f %% | %4.0f %%\n",
                shape.c_str(), row.name.c_str(), row.ms[row.ms.size() / 2],
                row.ms[row.ms.size() / 10], row.ms[row.ms.size() * 9 / 10], r, 100 * r / copy_rate,
                100 * r / memcpy_rate);
  }
}

/// The rows that print_rows() compares with: `bytes` moved, half of them read.
inline void add_copies(std::vector<Row>& rows, const Memory& from, const Memory& to, double bytes) {
  const auto half = static_cast<size_t>(bytes / 2);
  rows.push_back({"cudaMemcpy",
                  bytes,
                  [&from, &to, half] {
                    return LaunchStatus{
                        cudaMemcpyAsync(to.get(), from.get(), half, cudaMemcpyDeviceToDevice),
                        "cudaMemcpyAsync"};
                  },
                  {}});
  rows.push_back({"copy kernel",
                  bytes,
                  [&from, &to, half] {
                    const auto packets = static_cast<int64_t>(half / 16);
                    copy_kernel<<<static_cast<unsigned>((packets + 1023) / 1024), 256>>>(
                        from.as<uint4>(), to.as<uint4>(), packets);
                    return LaunchStatus{cudaGetLastError(), "the copy kernel"};
                  },
                  {}});
}

}  // namespace moe8::cuda
