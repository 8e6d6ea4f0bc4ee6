// SPDX-License-Identifier: BSD-3-Clause
// Rows into the order of experts, by two ways.
// From the tokens' side, when nothing is wanted but copies: a warp reads a piece of a token's row once and
// writes it k times.
// From the rows' side, when column maxima are wanted: a warp has 512 columns of a slab of 64 rows of one
// group and keeps their maxima in registers. It reads a token's row k times; so that those meet in
// the L2, slabs that are equally far in their groups are taken together.
#include <algorithm>

#include "cuda/experts/divisor.h"
#include "cuda/experts/float8_values.cuh"
#include "cuda/experts/gather.h"
#include "cuda/launch.cuh"
#include "cuda/quantize/clear.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kUnits = 4;       // that a lane copies at once
constexpr int kMaximaRows = 8;  // of 16 bytes that a lane loads at once, with column maxima
constexpr int kLaneColumns = 16;
constexpr int64_t kWarpColumns = 32 * kLaneColumns;

// Fewer warps than this many of a multiprocessor leave the last wave half empty: slabs of 32 rows.
constexpr int64_t kManyWarps = 64;

// ---- from the tokens' side
struct Spread {
  const void* in;
  void* out;
  int64_t tokens;
  int64_t row_units;
  int64_t pieces;  // warps on a row
  int32_t top_k;
  const int32_t* row_of_slot;
  const int32_t* rows_in_groups;
  const float* in_scale;  // null: none
  float* out_scale;
};

template <typename Unit>
struct Piece {
  Unit units[kUnits];
  int64_t first;  // of the lane, in its row
  int64_t count;

  __device__ Piece(const Spread& p, const Unit* row, int64_t piece)
      : first(piece * (32 * kUnits) + threadIdx.x % 32), count(p.row_units) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      units[i] = first + i * 32 < count ? __ldcg(row + first + i * 32) : Unit{};
    }
  }

  __device__ void store(Unit* row, bool zeros) const {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (first + i * 32 < count) __stcs(row + first + i * 32, zeros ? Unit{} : units[i]);
    }
  }
};

template <typename Unit>
__global__ void __launch_bounds__(kThreads) spread_rows(const __grid_constant__ Spread p) {
  follow_stream();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t token = warp / p.pieces;
  const int64_t piece = warp % p.pieces;
  if (token >= p.tokens) return;
  const int lane = threadIdx.x % 32;
  const int32_t end = p.rows_in_groups == nullptr ? INT32_MAX : *p.rows_in_groups;
  const Piece<Unit> units(p, static_cast<const Unit*>(p.in) + token * p.row_units, piece);
  const float scale = p.in_scale == nullptr ? 0.0f : p.in_scale[token];

  for (int32_t first = 0; first < p.top_k; first += 32) {
    const int32_t count = min(p.top_k - first, 32);
    const int32_t own = lane < count ? p.row_of_slot[token * p.top_k + first + lane] : 0;
    if (p.in_scale != nullptr && piece == 0 && lane < count) {
      p.out_scale[own] = own < end ? scale : 1.0f;
    }
    for (int32_t j = 0; j < count; ++j) {
      const int32_t row = __shfl_sync(~0u, own, j);
      units.store(static_cast<Unit*>(p.out) + row * p.row_units, row >= end);
    }
  }
}

template <typename Unit>
LaunchStatus launch_spread(Spread p, int64_t row_bytes, cudaStream_t stream) {
  p.row_units = row_bytes / static_cast<int64_t>(sizeof(Unit));
  p.pieces = std::max<int64_t>(ceil_div(p.row_units, 32 * kUnits), 1);
  return launch_early(spread_rows<Unit>, ceil_div(p.tokens * p.pieces, kWarps), kThreads, 0, stream,
                      p);
}

LaunchStatus launch_spread(const Spread& p, int64_t row_bytes, cudaStream_t stream) {
  if (p.tokens * p.top_k == 0) return {};
  const auto address = reinterpret_cast<uintptr_t>(p.in) | reinterpret_cast<uintptr_t>(p.out) |
                       static_cast<uintptr_t>(row_bytes);
  if (address % sizeof(uint4) == 0) return launch_spread<uint4>(p, row_bytes, stream);
  if (address % sizeof(uint32_t) == 0) return launch_spread<uint32_t>(p, row_bytes, stream);
  if (address % sizeof(uint16_t) == 0) return launch_spread<uint16_t>(p, row_bytes, stream);
  return launch_spread<uint8_t>(p, row_bytes, stream);
}

// ---- from the rows' side
struct Maxima {
  GatherCodesArgs args;
  RowChunks slabs;
  Divisor top_k;
  int64_t slabs_per_stream;
  int64_t pieces;  // warps on a row
  int64_t warps;
};

// Warp after warp through the columns of a slab, then to the slab that lies as far in the next stream.
// There are as many streams as groups, so that they run in step when groups are about equal.
__device__ RowChunk slab_of(const Maxima& p, int64_t warp) {
  const int64_t i = warp / p.pieces;
  const int64_t streams = p.args.in.groups.groups;
  const int64_t slab = i % streams * p.slabs_per_stream + i / streams;
  return slab < p.slabs.count ? p.slabs.at(slab) : RowChunk{0, 0, kNoGroup, 0};
}

// Where a lane's two rows of a slab (lane and lane + 32) come from.
struct Sources {
  int32_t tokens[2];
  float scales[2];

  __device__ Sources(const Maxima& p, const RowChunk& slab) : tokens{}, scales{1.0f, 1.0f} {
    const RowCodes& in = p.args.in;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = static_cast<int>(threadIdx.x % 32) + 32 * i;
      if (r >= slab.rows || slab.group == kNoGroup) continue;
      tokens[i] = p.top_k.quotient(in.slot_of_row[slab.row + r]);
      scales[i] = in.inverse_scale[tokens[i]];
    }
  }
  __device__ int32_t token(int r) const {
    return __shfl_sync(~0u, r < 32 ? tokens[0] : tokens[1], r % 32);
  }
  __device__ float scale(int r) const {
    return __shfl_sync(~0u, r < 32 ? scales[0] : scales[1], r % 32);
  }
};

template <ElemDtype elem>
__device__ void update_maxima(float (&maxima)[kLaneColumns], const uint4& codes, float scale) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float values[4];
    decode_four<elem>(words[w], values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      maxima[4 * w + i] = max_magnitude(maxima[4 * w + i], values[i] * scale);
    }
  }
}

// Lanes exchange their maxima so that neighbouring lanes send neighbouring atomics.
__device__ void flush_maxima(const float (&maxima)[kLaneColumns], float* shared, uint32_t* out,
                             int64_t first, int64_t columns) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) shared[lane * (kLaneColumns + 1) + i] = maxima[i];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    const int c = i * 32 + lane;
    const float m = shared[c / kLaneColumns * (kLaneColumns + 1) + c % kLaneColumns];
    const uint32_t bits = isnan(m) ? 0x7FC00000u : __float_as_uint(m);
    if (first + c < columns && bits != 0) atomicMax(out + first + c, bits);
  }
}

template <ElemDtype elem>
__global__ void __launch_bounds__(kThreads) gather_with_maxima(const __grid_constant__ Maxima p) {
  __shared__ float exchange[kWarps][32 * (kLaneColumns + 1)];
  const GatherCodesArgs& a = p.args;
  follow_stream();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (warp >= p.warps) return;
  const RowChunk slab = slab_of(p, warp);
  if (slab.rows == 0) return;
  const int lane = threadIdx.x % 32;
  const int64_t piece = warp % p.pieces;
  const int64_t column = piece * kWarpColumns + lane * kLaneColumns;
  const bool is_there = column < a.in.pitch;
  const bool grouped = slab.group != kNoGroup;
  const Sources sources(p, slab);

  float maxima[kLaneColumns] = {};
  uint8_t* out = a.codes + slab.row * a.in.pitch + column;
  for (int first = 0; first < slab.rows; first += kMaximaRows) {
    uint4 codes[kMaximaRows];
#pragma unroll
    for (int i = 0; i < kMaximaRows; ++i) {
      const int64_t at = sources.token(first + i) * a.in.pitch + column;
      codes[i] = is_there && grouped && first + i < slab.rows
                     ? __ldcg(reinterpret_cast<const uint4*>(a.in.codes + at))
                     : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kMaximaRows; ++i) {
      if (is_there && first + i < slab.rows) {
        __stcs(reinterpret_cast<uint4*>(out + (first + i) * a.in.pitch), codes[i]);
      }
      update_maxima<elem>(maxima, codes[i], sources.scale(first + i));
    }
  }
  if (piece == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = lane + 32 * i;
      if (r < slab.rows) a.inverse_scale[slab.row + r] = sources.scales[i];
    }
  }
  if (!grouped) return;
  flush_maxima(maxima, exchange[threadIdx.x / 32], a.column_amax + slab.group * a.in.columns,
               piece * kWarpColumns, a.in.columns);
}

LaunchStatus launch_with_maxima(const GatherCodesArgs& a, cudaStream_t stream) {
  const RowGroups& groups = a.in.groups;
  const LaunchStatus cleared = launch_clear(a.column_amax, groups.groups * a.in.columns, stream);
  if (!cleared.ok() || groups.rows == 0) return cleared;
  const int64_t pieces = std::max<int64_t>(ceil_div(a.in.pitch, kWarpColumns), 1);
  Maxima p{a, slabs_of(groups), Divisor::of(a.in.top_k), 0, pieces, 0};
  if (p.slabs.count * p.pieces < kManyWarps * multiprocessor_count()) p.slabs = blocks_of(groups);
  p.slabs_per_stream = ceil_div(p.slabs.count, groups.groups);
  p.warps = p.slabs_per_stream * groups.groups * p.pieces;
  return launch_early(a.in.elem == ElemDtype::E4M3 ? gather_with_maxima<ElemDtype::E4M3>
                                                   : gather_with_maxima<ElemDtype::E5M2>,
                      ceil_div(p.warps, kWarps), kThreads, 0, stream, p);
}

}  // namespace

// ---- launch
LaunchStatus launch_gather_rows(const GatherRowsArgs& a, cudaStream_t stream) {
  if (a.tokens * a.top_k > INT32_MAX) return refused("more rows than 32 bits count");
  const Spread p{a.in,
                 a.out,
                 a.tokens,
                 0,
                 0,
                 static_cast<int32_t>(a.top_k),
                 a.row_of_slot,
                 a.rows_in_groups,
                 nullptr,
                 nullptr};
  return launch_spread(p, a.row_bytes, stream);
}

LaunchStatus launch_gather_codes(const GatherCodesArgs& a, cudaStream_t stream) {
  const RowGroups& groups = a.in.groups;
  if (const char* why = refusal_of(a.in)) return refused(why);
  if (a.in.slot_of_row == nullptr || !groups.is_jagged()) {
    return refused("rows to gather without an order");
  }
  if (reinterpret_cast<uintptr_t>(a.codes) % 16 != 0)
    return refused("codes that are not 16-byte aligned");
  if (a.column_amax != nullptr && groups.groups > 0) return launch_with_maxima(a, stream);
  const Spread p{a.in.codes,
                 a.codes,
                 groups.rows / a.in.top_k,
                 0,
                 0,
                 static_cast<int32_t>(a.in.top_k),
                 a.row_of_slot,
                 groups.jagged.begins + groups.groups,
                 a.in.inverse_scale,
                 a.inverse_scale};
  return launch_spread(p, a.in.pitch, stream);
}

}  // namespace moe8::cuda
