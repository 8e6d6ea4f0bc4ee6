// SPDX-License-Identifier: BSD-3-Clause
// The stable counting sort, in three kernels: how many slots of each expert a tile of slots has;
// what the tiles before it have; and where each slot goes. All of it is latency: 8 or 4 bytes per
// slot are read twice and 8 written.
#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "cuda/experts/routing.h"
#include "cuda/groups/group_metadata.h"
#include "cuda/launch.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBatch = 4;  // slots that a thread loads at once
constexpr int64_t kTile = kThreads * kBatch;
constexpr int64_t kMaxTiles = 1024;  // above it tiles grow, so that the table of counts does not
constexpr int kTileLanes = 32;       // warps of the kernel between, which share out the tiles

struct Sort {
  ExpertOrderArgs args;
  int64_t tile;     // slots of a block, a multiple of kTile
  int64_t tiles;    // blocks, at least one
  int32_t buckets;  // the groups, and one for slots in no group
  int32_t* table;   // [tiles, buckets] counts; then those of the tiles before
  int32_t* totals;  // [buckets]
};

// ---- device helpers
template <typename Index>
__device__ int bucket_of(const Sort& p, int64_t slot) {
  const auto expert =
      static_cast<uint64_t>(static_cast<int64_t>(static_cast<const Index*>(p.args.experts)[slot]));
  const auto groups = static_cast<uint64_t>(p.args.groups);
  return static_cast<int>(expert < groups ? expert : groups);
}

constexpr int kNone = -1;  // past the last slot

// The buckets of a warp's next kBatch * 32 slots, 32 neighbours at a time.
template <typename Index>
__device__ void load_buckets(const Sort& p, int64_t first, int (&bucket)[kBatch]) {
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const int64_t slot = first + i * 32 + threadIdx.x % 32;
    bucket[i] = slot < p.args.slots ? bucket_of<Index>(p, slot) : kNone;
  }
}

/// The lanes of a warp that have this one's bucket.
struct Peers {
  unsigned mask;

  __device__ explicit Peers(int bucket) : mask(__match_any_sync(~0u, bucket)) {}
  __device__ int count() const { return __popc(mask); }
  __device__ int before() const { return __popc(mask & ((1u << threadIdx.x % 32) - 1)); }
  __device__ bool is_first() const { return before() == 0; }
};

using Scan = cub::BlockScan<int, kThreads>;

// begins[i] = the rows of the buckets before i.
__device__ void scan_totals(const Sort& p, Scan::TempStorage& storage, int32_t* begins) {
  const int items = ceil_div(p.buckets, kThreads);
  const int first = static_cast<int>(threadIdx.x) * items;
  const int last = min(first + items, p.buckets);
  int sum = 0;
  for (int i = first; i < last; ++i) sum += p.totals[i];
  int before;
  Scan(storage).ExclusiveSum(sum, before);
  for (int i = first; i < last; ++i) {
    begins[i] = before;
    before += p.totals[i];
  }
  __syncthreads();
}

// The groups' ends and sizes.
__device__ void write_groups(const Sort& p, const int32_t* begins) {
  const ExpertOrderArgs& a = p.args;
  for (int i = threadIdx.x; i < p.buckets - 1; i += kThreads) {
    a.offs[i] = begins[i + 1];
    const int32_t count = begins[i + 1] - begins[i];
    if (a.counts == nullptr) continue;
    if (a.counts_type == IndexType::I64) {
      static_cast<int64_t*>(a.counts)[i] = count;
    } else {
      static_cast<int32_t*>(a.counts)[i] = count;
    }
  }
}

// ---- kernels
// table[tile] = how many slots of the tile each bucket has.
template <typename Index>
__global__ void __launch_bounds__(kThreads) count_slots(const __grid_constant__ Sort p) {
  extern __shared__ int32_t counts[];  // [buckets]
  for (int i = threadIdx.x; i < p.buckets; i += kThreads) counts[i] = 0;
  __syncthreads();
  follow_stream();
  const int64_t begin = blockIdx.x * p.tile;
  for (int64_t first = begin; first < begin + p.tile; first += kTile) {
    int bucket[kBatch];
    load_buckets<Index>(p, first + threadIdx.x / 32 * (32 * kBatch), bucket);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (bucket[i] != kNone) atomicAdd(&counts[bucket[i]], 1);
    }
  }
  __syncthreads();
  int32_t* row = p.table + static_cast<int64_t>(blockIdx.x) * p.buckets;
  for (int i = threadIdx.x; i < p.buckets; i += kThreads) row[i] = counts[i];
}

// Counts become those of the tiles before. A block has 32 buckets, a lane each; its warps have
// equal runs of tiles.
__global__ void __launch_bounds__(32 * kTileLanes) scan_tiles(const __grid_constant__ Sort p) {
  __shared__ int32_t sums[kTileLanes][32];
  follow_stream();
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int bucket = static_cast<int>(blockIdx.x) * 32 + lane;
  const bool is_there = bucket < p.buckets;
  const int64_t run = ceil_div(p.tiles, kTileLanes);
  const int64_t first = warp * run;
  const int64_t last = min(first + run, p.tiles);
  int32_t* column = p.table + bucket;

  int32_t sum = 0;
#pragma unroll 4
  for (int64_t t = first; t < last; ++t) sum += is_there ? column[t * p.buckets] : 0;
  sums[warp][lane] = sum;
  __syncthreads();
  int32_t before = 0;
#pragma unroll
  for (int w = 0; w < kTileLanes; ++w) before += w < warp ? sums[w][lane] : 0;
  if (!is_there) return;
#pragma unroll 4
  for (int64_t t = first; t < last; ++t) {
    const int32_t count = column[t * p.buckets];
    column[t * p.buckets] = before;
    before += count;
  }
  if (warp == kTileLanes - 1) p.totals[bucket] = before;
}

// Each warp has a run of the tile's slots: it counts them, so that it knows what the warps before
// it have, then ranks them.
template <typename Index>
__global__ void __launch_bounds__(kThreads) place_slots(const __grid_constant__ Sort p) {
  extern __shared__ int32_t shared[];
  __shared__ typename Scan::TempStorage storage;
  int32_t* begins = shared;                                              // [buckets]
  int32_t* next = shared + (1 + threadIdx.x / 32) * int64_t{p.buckets};  // [buckets], of the warp
  for (int i = threadIdx.x % 32; i < p.buckets; i += 32) next[i] = 0;
  follow_stream();
  scan_totals(p, storage, begins);
  if (blockIdx.x == 0) write_groups(p, begins);

  const int64_t run = p.tile / kWarps;
  const int64_t begin = blockIdx.x * p.tile + threadIdx.x / 32 * run;
  int bucket[kBatch];
  for (int64_t first = begin; first < begin + run; first += 32 * kBatch) {
    load_buckets<Index>(p, first, bucket);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const Peers peers(bucket[i]);
      if (peers.is_first() && bucket[i] != kNone) next[bucket[i]] += peers.count();
      __syncwarp();
    }
  }
  __syncthreads();
  const int32_t* before = p.table + static_cast<int64_t>(blockIdx.x) * p.buckets;
  for (int i = threadIdx.x; i < p.buckets; i += kThreads) {
    int32_t row = begins[i] + before[i];
    for (int w = 1; w <= kWarps; ++w) {
      const int32_t count = shared[w * p.buckets + i];
      shared[w * p.buckets + i] = row;
      row += count;
    }
  }
  __syncthreads();
  for (int64_t first = begin; first < begin + run; first += 32 * kBatch) {
    if (run > 32 * kBatch) load_buckets<Index>(p, first, bucket);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t slot = first + i * 32 + threadIdx.x % 32;
      const Peers peers(bucket[i]);
      const int32_t row = bucket[i] == kNone ? 0 : next[bucket[i]] + peers.before();
      __syncwarp();
      if (bucket[i] != kNone) {
        if (peers.is_first()) next[bucket[i]] += peers.count();
        p.args.slot_of_row[row] = static_cast<int32_t>(slot);
        p.args.row_of_slot[slot] = row;
      }
      __syncwarp();
    }
  }
}

// ---- launch
Sort plan(const ExpertOrderArgs& a) {
  Sort p{a, 0, 0, 0, nullptr, nullptr};
  p.tile = std::max(kTile, round_up(ceil_div(a.slots, kMaxTiles), kTile));
  p.tiles = std::max<int64_t>(ceil_div(a.slots, p.tile), 1);
  p.buckets = static_cast<int32_t>(a.groups + 1);
  p.table = static_cast<int32_t*>(a.workspace);
  p.totals = p.table + p.tiles * p.buckets;
  return p;
}

template <typename Index>
LaunchStatus launch(const Sort& p, cudaStream_t stream) {
  const size_t counts = static_cast<size_t>(p.buckets) * sizeof(int32_t);
  const size_t places = (kWarps + 1) * counts;
  if (places > 48 * 1024) {  // beyond what a kernel has without asking
    const cudaError_t error = cudaFuncSetAttribute(
        place_slots<Index>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(places));
    if (error != cudaSuccess) return {error, "shared memory for so many experts"};
  }
  LaunchStatus status = launch_early(count_slots<Index>, p.tiles, kThreads, counts, stream, p);
  if (!status.ok()) return status;
  status = launch_early(scan_tiles, ceil_div(p.buckets, 32), 32 * kTileLanes, 0, stream, p);
  if (!status.ok()) return status;
  return launch_early(place_slots<Index>, p.tiles, kThreads, places, stream, p);
}

}  // namespace

int64_t expert_order_workspace_bytes(int64_t slots, int64_t groups) {
  ExpertOrderArgs a{};
  a.slots = slots;
  a.groups = groups;
  const Sort p = plan(a);
  return (p.tiles + 1) * p.buckets * static_cast<int64_t>(sizeof(int32_t));
}

LaunchStatus launch_expert_order(const ExpertOrderArgs& a, cudaStream_t stream) {
  if (a.groups < 0 || a.groups > kMaxGroups) return refused("more experts than one block counts");
  if (a.slots < 0 || a.slots > INT32_MAX) return refused("more slots than 32 bits count");
  const Sort p = plan(a);
  return a.experts_type == IndexType::I64 ? launch<int64_t>(p, stream) : launch<int32_t>(p, stream);
}

}  // namespace moe8::cuda
