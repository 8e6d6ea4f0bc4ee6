// SPDX-License-Identifier: BSD-3-Clause
// Scale bytes in tile order. A thread writes four neighbouring bytes, one row of a tile's columns;
// scales are 3 % of the data, so the reads, 4 bytes wide at best, need no more care.
#include <cub/block/block_scan.cuh>

#include "cuda/groups/group_metadata.h"
#include "cuda/launch.cuh"
#include "cuda/quantize/blocked_scales.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kItems = kMaxGroups / kThreads;
constexpr int64_t kTileRows = 128;
constexpr int64_t kTileColumns = 4;
constexpr int64_t kTileBytes = kTileRows * kTileColumns;

// ---- device helpers
/// A part of a [.., pitch] matrix that is put into tile order by itself.
struct Region {
  const uint8_t* scale;
  int64_t pitch;
  int64_t rows;
  int64_t columns;
};

/// The four bytes at `byte` of the region's tiles, zero where they are padding.
__device__ uint32_t word_at(const Region& r, int64_t byte) {
  const int64_t tile = byte / kTileBytes;
  const int in_tile = static_cast<int>(byte % kTileBytes);
  const int64_t across = (r.columns + kTileColumns - 1) / kTileColumns;
  const int64_t row = tile / across * kTileRows + in_tile % 16 / 4 * 32 + in_tile / 16;
  const int64_t column = tile % across * kTileColumns;
  if (row >= r.rows) return 0;
  uint32_t word = 0;
  for (int i = 0; i < kTileColumns && column + i < r.columns; ++i) {
    word |= static_cast<uint32_t>(r.scale[row * r.pitch + column + i]) << (8 * i);
  }
  return word;
}

// ---- kernels
__global__ void __launch_bounds__(kThreads)
    find_starts(const int32_t* ends, int groups, int padding, int64_t* start) {
  using Scan = cub::BlockScan<int64_t, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  follow_stream();
  int64_t sizes[kItems];
  for (int i = 0; i < kItems; ++i) {
    const int g = threadIdx.x * kItems + i;
    const int size = g < groups ? ends[g] - (g > 0 ? ends[g - 1] : 0) : 0;
    sizes[i] = round_up(max(size, 0), padding);
  }
  int64_t before[kItems], total;
  Scan(scan).ExclusiveSum(sizes, before, total);
  for (int i = 0; i < kItems; ++i) {
    const int g = threadIdx.x * kItems + i;
    if (g < groups) start[g] = before[i];
  }
  if (threadIdx.x == 0) start[groups] = total;
}

/// `unit`: bytes of output for each padded row (or column) of a group.
__global__ void __launch_bounds__(kThreads)
    block_groups(BlockedGroupsArgs a, bool of_rows, int64_t unit, int64_t words) {
  follow_stream();
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= words) return;
  const int64_t at = i * 4 / unit;
  uint32_t word = 0;
  if (at < a.start[a.groups]) {
    int64_t low = 0, high = a.groups;  // start[low] <= at < start[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (a.start[middle] <= at ? low : high) = middle;
    }
    // Clamped, so that wrong ends cannot make it read outside the matrix.
    const int64_t extent = of_rows ? a.rows : a.columns;
    const int64_t before = low > 0 ? a.ends[low - 1] : 0;
    const int64_t begin = min(max(before, int64_t{0}), extent);
    const int64_t size = min(max(a.ends[low] - begin, int64_t{0}), extent - begin);
    const Region region{a.scale + (of_rows ? begin * a.columns : begin), a.columns,
                        of_rows ? size : a.rows, of_rows ? a.columns : size};
    word = word_at(region, i * 4 - a.start[low] * unit);
  }
  reinterpret_cast<uint32_t*>(a.blocked)[i] = word;
}

// ---- launch
LaunchStatus launch_groups(const BlockedGroupsArgs& a, bool of_rows, cudaStream_t stream) {
  if (a.groups < 0 || a.groups > kMaxGroups) return refused("more groups than one block scans");
  const int64_t padding = of_rows ? kTileRows : kTileColumns;
  const int64_t unit = of_rows ? round_up(a.columns, kTileColumns) : round_up(a.rows, kTileRows);
  const int64_t words = ((of_rows ? a.rows : a.columns) + padding * a.groups) * unit / 4;
  const LaunchStatus status =
      launch_early(find_starts, 1, kThreads, 0, stream, a.ends, static_cast<int>(a.groups),
                   static_cast<int>(padding), a.start);
  if (!status.ok() || words == 0) return status;
  return launch_early(block_groups, (words + kThreads - 1) / kThreads, kThreads, 0, stream, a,
                      of_rows, unit, words);
}

}  // namespace

LaunchStatus launch_blocked_scales_m_groups(const BlockedGroupsArgs& args, cudaStream_t stream) {
  return launch_groups(args, true, stream);
}

LaunchStatus launch_blocked_scales_k_groups(const BlockedGroupsArgs& args, cudaStream_t stream) {
  return launch_groups(args, false, stream);
}

}  // namespace moe8::cuda
