// SPDX-License-Identifier: BSD-3-Clause
// What the kernels of mx_rows.h share: a warp's tile of 32 rows of a group and 64 columns, held in
// registers as in quantize/mx.cuh, and how it is written in blocks along rows and columns.
#pragma once

#include <cstdint>

#include "cuda/experts/divisor.h"
#include "cuda/experts/gate.cuh"
#include "cuda/experts/mx_rows.h"
#include "cuda/launch.cuh"
#include "cuda/quantize/mx.cuh"
#include "formats/integers.h"

namespace moe8::cuda {

inline constexpr ElemDtype kMxElem = ElemDtype::E4M3;
using Packets16 = MxPackets<BFloat16>;

// ---- where a tile lies
/// Tiles of a matrix: those of a block of rows one after the other.
struct MxTiles {
  RowChunks blocks;
  int32_t columns;
  int32_t across;  // tiles on a row
  Divisor by_across;
  int32_t count;

  static MxTiles of(const RowGroups& groups, int64_t columns) {
    const int64_t across = ceil_div(columns, kWarpColumns);
    const RowChunks blocks = blocks_of(groups);
    return {blocks, static_cast<int32_t>(columns), static_cast<int32_t>(across),
            Divisor::of(across), static_cast<int32_t>(blocks.count * across)};
  }
};

/// A lane's place in a tile. A lane past the last column has no rows; neither has one in a block
/// past the last group: there all is zero.
struct MxPlace {
  RowChunk block;
  int32_t tile;     // across
  int32_t column;   // of the lane's packets
  int32_t row;      // of the first one in the block
  int32_t written;  // rows that the lane writes
  int32_t read;     // rows that it has values for

  __device__ MxPlace(const RowChunk& b, int32_t t, int32_t columns) : block(b), tile(t) {
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    column = tile * kWarpColumns + lane % kLanesAcross * 8;
    row = lane / kLanesAcross;
    written = column < columns ? block.rows : 0;
    read = block.group == kNoGroup ? 0 : written;
  }

  __device__ int32_t row_of(int i) const { return i * kRowStep + row; }
  __device__ bool reads(int i) const { return row_of(i) < read; }
  __device__ bool writes(int i) const { return row_of(i) < written; }
};

/// A lane's packets of one matrix, `width` wide, from `column` on. Addresses are stepped from one to
/// the next: eight of them at hand would cost the registers that hold packets.
struct MxMatrix {
  const MxPlace& at;
  int32_t width;
  int32_t column;

  __device__ int64_t first() const { return int64_t{at.block.row + at.row} * width + column; }
  __device__ int32_t step() const { return kRowStep * width; }

  /// Zeros where there are none.
  __device__ void load(Packets16& x, const void* matrix) const {
    const BFloat16* p = static_cast<const BFloat16*>(matrix) + first();
#pragma unroll
    for (int i = 0; i < kPacketRows; ++i, p += step()) {
      x.packets[i] = at.reads(i) ? load_packet(p) : Packet16{};
    }
  }

  /// What stores packets when called with i = 0, 1, ... and the packet of that number.
  __device__ auto store_to(void* matrix) const {
    return [this, p = static_cast<BFloat16*>(matrix) + first()](int i, const Packet16& x) mutable {
      if (at.writes(i)) store_packet(p, x);
      p += step();
    };
  }
};

// ---- results
__device__ inline void store_values(const Packets16& x, const MxMatrix& to, void* matrix) {
  if (matrix == nullptr) return;
  auto store = to.store_to(matrix);
#pragma unroll
  for (int i = 0; i < kPacketRows; ++i) store(i, x.packets[i]);
}

/// store(i, packet) gets the values of packet i.
template <typename Store>
__device__ void store_row_values(const Packets16& x, ScaleCalculationMode mode, Store store) {
  uint32_t amax[8], s[8];
  x.row_amax(amax);
  scales_of<kMxElem>(amax, mode, s);
  emit<Packet16, kMxElem>(
      x, all_plain<Packet16, kMxElem, BFloat16>(amax, s),
      [&](int i) { return ScaleBytes::all(s[i]); }, store);
}

__device__ inline void store_column_values(const Packets16& x, ScaleCalculationMode mode,
                                           const MxMatrix& to, void* matrix) {
  if (matrix == nullptr) return;
  uint32_t amax[8];
  ScaleBytes s;
  x.column_amax(amax);
  scales_of<kMxElem>(amax, mode, s.bytes);
  emit<Packet16, kMxElem>(
      x, all_plain<Packet16, kMxElem, BFloat16>(amax, s.bytes), [&](int) { return s; },
      to.store_to(matrix));
}

/// All that is wanted of a matrix of which the warp has 64 neighbouring columns.
__device__ inline void store_rows(const Packets16& x, ScaleCalculationMode mode, const MxMatrix& to,
                                  const MxRows& out) {
  store_values(x, to, out.values);
  if (out.row_values != nullptr) store_row_values(x, mode, to.store_to(out.row_values));
  store_column_values(x, mode, to, out.column_values);
}

// ---- launch
inline bool is_wide(const MxRows& o) {
  return is_aligned(o.values, 8, 2) && is_aligned(o.row_values, 8, 2) &&
         is_aligned(o.column_values, 8, 2);
}

/// Why no kernel takes rows of so many columns in these groups; nullptr: one does.
inline const char* refusal_of(const RowGroups& groups, int64_t columns) {
  if (!groups.is_valid()) return "more rows than 32 bits count";
  if (!groups.is_jagged()) return "groups of equal size instead of ragged ones";
  if (columns % 8 != 0) return "columns that are no multiple of 8";
  constexpr int64_t kMostColumns = INT32_MAX / (4 * kBlockRows);
  const int64_t tiles = blocks_of(groups).count * ceil_div(columns, kWarpColumns);
  return columns > kMostColumns || tiles > INT32_MAX ? "more columns than 32 bits count" : nullptr;
}

}  // namespace moe8::cuda
