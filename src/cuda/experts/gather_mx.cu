// SPDX-License-Identifier: BSD-3-Clause
// Rows of tokens into the order of experts as MX values, by two ways. From the tokens' side, when
// blocks along rows are all that is wanted: a tile is quantized once and written k times. From the
// rows' side, when blocks are along columns: a token's row is read k times; so that those meet in
// the L2, blocks that are equally far in their groups are taken together.
#include <algorithm>

#include "cuda/experts/mx_tile.cuh"

namespace moe8::cuda {
namespace {

constexpr int kResident = 5;  // thread blocks on a multiprocessor, as of the MX kernel

// ---- from the tokens' side
struct Spread {
  GatherMxArgs args;
  int32_t tokens;
  int32_t columns;
  int32_t across;  // tiles on a row
  Divisor by_across;
  int32_t warps;
};

__device__ Packets16 in_row_blocks(const Packets16& x, ScaleCalculationMode mode) {
  Packets16 values;
  store_row_values(x, mode, [&](int i, const Packet16& v) { values.packets[i] = v; });
  return values;
}

__global__ void __launch_bounds__(kMxThreads, kResident)
    spread_mx(const __grid_constant__ Spread p) {
  follow_stream();
  const int32_t warp = static_cast<int32_t>(blockIdx.x) * kMxWarps + threadIdx.x / 32;
  if (warp >= p.warps) return;
  const GatherMxArgs& a = p.args;
  const int32_t step = p.by_across.quotient(warp);
  const auto first = static_cast<int32_t>(step * kBlockRows);
  const RowChunk tokens{first, min(p.tokens - first, static_cast<int32_t>(kBlockRows)), 0, 0};
  const MxPlace at(tokens, warp - step * p.across, p.columns);
  Packets16 x;
  MxMatrix{at, p.columns, at.column}.load(x, a.in);
  const Packets16 values = in_row_blocks(x, a.mode);
  const int32_t end = a.groups.jagged.begins[a.groups.groups];
  BFloat16* const out = static_cast<BFloat16*>(a.out.row_values) + at.column;

  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t* slots = a.row_of_slot + (first + min(lane, tokens.rows - 1)) * a.top_k;
  for (int64_t j = 0; j < a.top_k; ++j) {
    const int32_t own = slots[j];
#pragma unroll
    for (int i = 0; i < kPacketRows; ++i) {
      const int64_t row = __shfl_sync(~0u, own, at.row_of(i));
      if (!at.writes(i) || row >= a.groups.rows) continue;
      store_packet(out + row * p.columns, row < end ? values.packets[i] : Packet16{});
    }
  }
}

LaunchStatus launch_spread(const GatherMxArgs& a, cudaStream_t stream) {
  const int64_t tokens = a.tokens < 0 ? a.groups.rows / a.top_k : a.tokens;
  const int64_t across = ceil_div(a.columns, kWarpColumns);
  const Spread p{a,
                 static_cast<int32_t>(tokens),
                 static_cast<int32_t>(a.columns),
                 static_cast<int32_t>(across),
                 Divisor::of(across),
                 static_cast<int32_t>(ceil_div(tokens, kBlockRows) * across)};
  return launch_early(spread_mx, ceil_div(int64_t{p.warps}, kMxWarps), kMxThreads, 0, stream, p);
}

// ---- from the rows' side
struct Gather {
  GatherMxArgs args;
  MxTiles tiles;
  Divisor top_k;
  int32_t warps;
  int32_t streams;  // one per group, so that they run in step when groups are about equal
  Divisor by_streams;
  int32_t blocks_per_stream;
};

// Tile after tile across a block, then the block that lies as far in the next stream.
__device__ RowChunk block_of(const Gather& p, int32_t step) {
  const int32_t far = p.by_streams.quotient(step);
  const int64_t block = int64_t{step - far * p.streams} * p.blocks_per_stream + far;
  return block < p.tiles.blocks.count ? p.tiles.blocks.at(block) : RowChunk{0, 0, kNoGroup, 0};
}

__device__ void load_tokens(const Gather& p, const MxPlace& at, Packets16& x) {
  const GatherMxArgs& a = p.args;
  const int32_t lane = min(static_cast<int32_t>(threadIdx.x % 32), at.block.rows - 1);
  const int32_t own = p.top_k.quotient(a.slot_of_row[at.block.row + lane]);
  const BFloat16* first = static_cast<const BFloat16*>(a.in) + at.column;
#pragma unroll
  for (int i = 0; i < kPacketRows; ++i) {
    const int64_t token = __shfl_sync(~0u, own, at.row_of(i));
    x.packets[i] = at.reads(i) ? load_packet(first + token * a.columns) : Packet16{};
  }
}

__global__ void __launch_bounds__(kMxThreads, kResident)
    gather_mx(const __grid_constant__ Gather p) {
  follow_stream();
  const int32_t warp = static_cast<int32_t>(blockIdx.x) * kMxWarps + threadIdx.x / 32;
  if (warp >= p.warps) return;
  const int32_t step = p.tiles.by_across.quotient(warp);
  const MxPlace at(block_of(p, step), warp - step * p.tiles.across, p.tiles.columns);
  if (at.block.rows == 0) return;
  Packets16 x;
  load_tokens(p, at, x);
  store_rows(x, p.args.mode, {at, p.tiles.columns, at.column}, p.args.out);
}

LaunchStatus launch_gather(const GatherMxArgs& a, cudaStream_t stream) {
  Gather p{a, MxTiles::of(a.groups, a.columns), Divisor::of(a.top_k), 0, 0, {}, 0};
  const int64_t streams = std::max<int64_t>(a.groups.groups, 1);
  const int64_t blocks = ceil_div(p.tiles.blocks.count, streams);
  if (blocks * streams * p.tiles.across > INT32_MAX) return refused("more rows than can be");
  p.warps = static_cast<int32_t>(blocks * streams * p.tiles.across);
  p.streams = static_cast<int32_t>(streams);
  p.by_streams = Divisor::of(streams);
  p.blocks_per_stream = static_cast<int32_t>(blocks);
  return launch_early(gather_mx, ceil_div(int64_t{p.warps}, kMxWarps), kMxThreads, 0, stream, p);
}

}  // namespace

LaunchStatus launch_gather_mx(const GatherMxArgs& a, cudaStream_t stream) {
  if (const char* why = refusal_of(a.groups, a.columns)) return refused(why);
  if (!is_aligned(a.in, 8, 2) || !is_wide(a.out)) return refused("rows not 16-byte aligned");
  if (a.top_k < 1) return refused("tokens without slots");
  if (a.groups.rows * a.columns == 0 || !a.out.any()) return {};
  const bool only_rows = a.out.values == nullptr && a.out.column_values == nullptr;
  return only_rows ? launch_spread(a, stream) : launch_gather(a, stream);
}

}  // namespace moe8::cuda
