// SPDX-License-Identifier: BSD-3-Clause
// The metadata kernel. Every block scans all groups by itself (a few microseconds) and then fills
// its share of the tables: no block waits for another.
#include <cub/block/block_scan.cuh>
#include <limits>

#include "cuda/groups/group_metadata.h"
#include "cuda/launch.cuh"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kGrid = 32;  // enough to write some ten thousand table entries at once

// ---- device helpers
using Scan = cub::BlockScan<int, kThreads>;

struct Max {
  __device__ int operator()(int a, int b) const { return a > b ? a : b; }
};

struct Shared {
  typename Scan::TempStorage scan;
  int begins[kMaxGroups + 1];
  int starts[kMaxGroups + 1];  // of the table in hand
};

// begins[] from offs, clamped so that no later access can leave the tensor whatever offs hold.
template <int kItems>  // groups a thread scans
__device__ void scan_begins(Shared& s, const int32_t* offs, const GroupMetadata& m) {
  const int groups = static_cast<int>(m.groups);
  int clamped[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int g = threadIdx.x * kItems + i;
    const int end = g < groups ? offs[g] : 0;
    clamped[i] = min(max(end, 0), static_cast<int>(m.rows));
  }
  int highest[kItems];
  Scan(s.scan).InclusiveScan(clamped, highest, Max{});
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int g = threadIdx.x * kItems + i;
    if (g < groups) s.begins[g + 1] = highest[i];
  }
  if (threadIdx.x == 0) s.begins[0] = 0;
  __syncthreads();
}

// starts[g] = the units of `height` rows before group g; `unit` is what each counts as.
template <int kItems>
__device__ void scan_starts(Shared& s, int groups, int height, int unit) {
  __syncthreads();
  int count[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int g = threadIdx.x * kItems + i;
    count[i] = g < groups ? (s.begins[g + 1] - s.begins[g] + height - 1) / height * unit : 0;
  }
  int before[kItems];
  int total;
  Scan(s.scan).ExclusiveSum(count, before, total);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int g = threadIdx.x * kItems + i;
    if (g < groups) s.starts[g] = before[i];
  }
  if (threadIdx.x == 0) s.starts[groups] = total;
  __syncthreads();
}

__device__ void copy_starts(const Shared& s, int groups, int32_t* out) {
  if (blockIdx.x != 0) return;
  for (int g = threadIdx.x; g <= groups; g += kThreads) out[g] = s.starts[g];
}

// The last group that starts at or before unit i: never an empty one, as the next starts there too.
__device__ int group_of(const Shared& s, int groups, int i) {
  int low = 0, high = groups;  // starts[low] <= i < starts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (s.starts[middle] <= i ? low : high) = middle;
  }
  return low;
}

__device__ RowChunk chunk_of(const Shared& s, const GroupMetadata& m, int i, int height, int unit) {
  const int groups = static_cast<int>(m.groups);
  if (i * unit < s.starts[groups]) {
    const int g = group_of(s, groups, i * unit);
    const int at = (i * unit - s.starts[g]) / unit * height;
    const int row = s.begins[g] + at;
    const int rows = min(max(s.begins[g + 1] - row, 0), height);
    return {rows > 0 ? row : 0, rows, g, at};
  }
  return {0, 0, kNoGroup, 0};
}

// The rows past the last group are cut into chunks too: they have row codes, but no column scale.
__device__ void fill_table(const Shared& s, const GroupMetadata& m, int height, RowChunk* table,
                           int64_t count) {
  const int groups = static_cast<int>(m.groups);
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    RowChunk chunk = chunk_of(s, m, static_cast<int>(i), height, 1);
    const int64_t past = i - s.starts[groups];
    const int64_t row = s.begins[groups] + past * height;
    if (past >= 0 && row < m.rows) {
      const int rows = static_cast<int>(min(m.rows - row, static_cast<int64_t>(height)));
      chunk = {static_cast<int>(row), rows, kNoGroup, 0};
    }
    table[i] = chunk;
  }
}

// ---- kernel
template <int kItems>
__global__ void __launch_bounds__(kThreads) fill_metadata(const int32_t* offs, GroupMetadata m) {
  __shared__ Shared s;
  follow_stream();
  const int groups = static_cast<int>(m.groups);
  scan_begins<kItems>(s, offs, m);
  if (blockIdx.x == 0) {
    for (int g = threadIdx.x; g <= groups; g += kThreads) m.begins[g] = s.begins[g];
  }
  scan_starts<kItems>(s, groups, kSlabRows, 1);
  fill_table(s, m, kSlabRows, m.slabs, m.slab_count());
  scan_starts<kItems>(s, groups, kBlockRows, 1);
  fill_table(s, m, kBlockRows, m.blocks, m.block_count());

  const int padding = static_cast<int>(m.padding);
  scan_starts<kItems>(s, groups, padding, padding);
  copy_starts(s, groups, m.padded_starts);
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < m.token_count();
       i += gridDim.x * kThreads) {
    m.tokens[i] = chunk_of(s, m, static_cast<int>(i), kTokenRows, kTokenRows);
  }
}

// Gives out pieces of one allocation, 16-byte aligned.
struct Carver {
  char* base;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return piece;
  }
};

GroupMetadata carve(Carver& carver, int64_t rows, int64_t groups, int64_t padding) {
  GroupMetadata m{};
  m.rows = rows;
  m.groups = groups;
  m.padding = padding;
  m.begins = carver.take<int32_t>(groups + 1);
  m.padded_starts = carver.take<int32_t>(groups + 1);
  m.blocks = carver.take<RowChunk>(m.block_count());
  m.slabs = carver.take<RowChunk>(m.slab_count());
  m.tokens = carver.take<RowChunk>(m.token_count());
  return m;
}

}  // namespace

// ---- launch
int64_t group_metadata_bytes(int64_t rows, int64_t groups, int64_t padding) {
  Carver carver{nullptr};
  carve(carver, rows, groups, padding);
  return carver.used;
}

GroupMetadata group_metadata(void* memory, int64_t rows, int64_t groups, int64_t padding) {
  Carver carver{static_cast<char*>(memory)};
  return carve(carver, rows, groups, padding);
}

LaunchStatus launch_group_metadata(const int32_t* offs, const GroupMetadata& m,
                                   cudaStream_t stream) {
  constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();
  if (m.groups < 0 || m.groups > kMaxGroups || m.padding < kTokenRows ||
      m.padding % kTokenRows != 0 || m.rows < 0 || m.padded_rows() > kMaxRows) {
    return refused("groups or rows beyond what the group metadata counts");
  }
  const auto kernel = m.groups <= kThreads       ? fill_metadata<1>
                      : m.groups <= 4 * kThreads ? fill_metadata<4>
                                                 : fill_metadata<kMaxGroups / kThreads>;
  return launch_early(kernel, kGrid, kThreads, 0, stream, offs, m);
}

}  // namespace moe8::cuda
