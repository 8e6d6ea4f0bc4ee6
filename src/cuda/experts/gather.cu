// SPDX-License-Identifier: BSD-3-Clause
// Rows into the order of experts, by two ways. From the tokens' side, when nothing is wanted but
// copies: a warp reads a piece of a token's row once and writes it k times. From the rows' side,
// when column maxima are wanted: a warp has 512 columns of a slab of 64 rows of one group and keeps
// their maxima in registers. It reads a token's row k times; so that those meet in the L2, slabs
// that are equally far in their groups are taken together.
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
constexpr int kUnits = 4;         // that a lane copies at once
constexpr int kMaximaRows = 8;    // of 16 bytes that a lane loads at once, with column maxima
constexpr int kMaximaBlocks = 3;  // on a multiprocessor
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
  int32_t rows;  // of `out`
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
    if (p.in_scale != nullptr && piece == 0 && lane < count && own < p.rows) {
      p.out_scale[own] = own < end ? scale : 1.0f;
    }
    for (int32_t j = 0; j < count; ++j) {
      const int32_t row = __shfl_sync(~0u, own, j);
      if (row < p.rows) units.store(static_cast<Unit*>(p.out) + row * p.row_units, row >= end);
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
  uint32_t pitch;
  int32_t warps;
  int32_t pieces;  // warps on a row
  Divisor by_pieces;
  int32_t streams;  // one per group, so that they run in step when groups are about equal
  Divisor by_streams;
  int32_t slabs_per_stream;
};

// Warp after warp through the columns of a slab, then to the slab that lies as far in the next
// stream.
__device__ RowChunk slab_of(const Maxima& p, int32_t step) {
  const int32_t far = p.by_streams.quotient(step);
  const int64_t slab = int64_t{step - far * p.streams} * p.slabs_per_stream + far;
  return slab < p.slabs.count ? p.slabs.at(slab) : RowChunk{0, 0, kNoGroup, 0};
}

// Where a lane's two rows of a slab (lane and lane + 32) come from; rows that are not there are the
// last one once more.
struct Sources {
  int32_t tokens[2];
  float scales[2];

  __device__ Sources(const Maxima& p, const RowChunk& slab) {
    const RowCodes& in = p.args.in;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = min(static_cast<int>(threadIdx.x % 32) + 32 * i, slab.rows - 1);
      tokens[i] = p.top_k.quotient(in.slot_of_row[slab.row + r]);
      scales[i] = in.inverse_scale[tokens[i]];
    }
  }
};

/// The largest magnitudes of a lane's columns in float32, whatever the scales.
template <ElemDtype elem>
struct FloatMaxima {
  static constexpr int kBatch = 2;  // rows at once
  float maxima[kLaneColumns] = {};
  int32_t factors[2];  // the scales of the lane's rows

  __device__ explicit FloatMaxima(const Sources& s) {
    factors[0] = __float_as_int(s.scales[0]);
    factors[1] = __float_as_int(s.scales[1]);
  }

  __device__ void update(const uint32_t (&words)[4], int32_t factor) {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += 2) {
      float v[2];
      unpack_halves(decode_pair<elem>(words[i / 4] >> (i % 4 * 8)), v[0], v[1]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float value = fabsf(v[n] * __int_as_float(factor));
        if (isnan(value) || value > maxima[i + n]) maxima[i + n] = value;
      }
    }
  }
  __device__ void get(float (&out)[kLaneColumns]) const {
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) out[i] = maxima[i];
  }
};

/// The same in half precision, as multiples of the slab's largest scale: half of the registers and
/// of the instructions. Right where is_exact.
template <ElemDtype elem>
struct HalfMaxima {
  static constexpr int kBatch = kMaximaRows;
  uint32_t maxima[kLaneColumns / 2] = {};
  float largest;
  int32_t factors[2];  // scale / largest of the lane's rows, in both halves
  bool is_exact = true;

  __device__ explicit HalfMaxima(const Sources& s) {
    const uint32_t bits = max(__float_as_uint(s.scales[0]), __float_as_uint(s.scales[1]));
    largest = __uint_as_float(__reduce_max_sync(~0u, bits));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool is_zero = s.scales[i] == 0.0f;
      const float ratio = is_zero ? 0.0f : __fdiv_rn(s.scales[i], largest);
      factors[i] = static_cast<int32_t>(pack_halves(ratio, ratio));
      is_exact &= is_zero || (is_power_of_two(s.scales[i]) && ratio >= kLeastRatio<elem>);
    }
    is_exact = __all_sync(~0u, is_exact);
  }

  __device__ void update(const uint32_t (&words)[4], int32_t factor) {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += 2) {
      const uint32_t pair = decode_pair<elem>(words[i / 4] >> (i % 4 * 8));
      maxima[i / 2] =
          max_magnitude_halves(maxima[i / 2], multiply_halves(pair, static_cast<uint32_t>(factor)));
    }
  }
  __device__ void get(float (&out)[kLaneColumns]) const {
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += 2) {
      unpack_halves(maxima[i / 2], out[i], out[i + 1]);
      out[i] = fabsf(out[i] * largest);
      out[i + 1] = fabsf(out[i + 1] * largest);
    }
  }
};

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

// The part of a slab that a warp has.
struct Tile {
  RowChunk slab;
  int32_t piece;
  int64_t column;  // of the lane; lanes past the last column have that one once more
};

// Half of a slab, 32 rows or fewer. Rows and columns that are not there are others once more: loads
// without conditions are under way together, and what is stored twice is the same.
template <typename Accumulator>
__device__ void gather_rows(const Maxima& p, const Tile& t, int32_t tokens, int32_t factors,
                            int first_row, Accumulator& maxima) {
  constexpr int kBatch = Accumulator::kBatch;
  const GatherCodesArgs& a = p.args;
  const uint8_t* in = a.in.codes + t.column;
  uint8_t* out = a.codes + (t.slab.row + first_row) * a.in.pitch + t.column;
  const int last = min(t.slab.rows - first_row, 32) - 1;
  for (int first = 0; first <= last; first += kBatch) {
    uint4 codes[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const auto token = static_cast<uint32_t>(__shfl_sync(~0u, tokens, first + i));
      codes[i] = __ldcg(reinterpret_cast<const uint4*>(in + uint64_t{token} * p.pitch));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const auto row = static_cast<uint32_t>(min(first + i, last));
      __stcs(reinterpret_cast<uint4*>(out + uint64_t{row} * p.pitch), codes[i]);
      maxima.update({codes[i].x, codes[i].y, codes[i].z, codes[i].w},
                    __shfl_sync(~0u, factors, first + i));
    }
  }
}

template <typename Accumulator>
__device__ void gather_tile(const Maxima& p, const Tile& t, const Sources& sources,
                            Accumulator& maxima, float* shared) {
  gather_rows(p, t, sources.tokens[0], maxima.factors[0], 0, maxima);
  if (t.slab.rows > 32) gather_rows(p, t, sources.tokens[1], maxima.factors[1], 32, maxima);
  float largest[kLaneColumns];
  maxima.get(largest);
  const RowCodes& in = p.args.in;
  flush_maxima(largest, shared, p.args.column_amax + t.slab.group * in.columns,
               t.piece * kWarpColumns, in.columns);
}

__device__ void write_scales(const GatherCodesArgs& a, const RowChunk& slab,
                             const float (&scales)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (r < slab.rows) a.inverse_scale[slab.row + r] = scales[i];
  }
}

// Rows past the last group.
__device__ void clear_tile(const GatherCodesArgs& a, const Tile& t) {
  uint8_t* out = a.codes + t.slab.row * a.in.pitch + t.column;
  for (int r = 0; r < t.slab.rows; ++r) {
    __stcs(reinterpret_cast<uint4*>(out + r * a.in.pitch), uint4{});
  }
  if (t.piece == 0) write_scales(a, t.slab, {1.0f, 1.0f});
}

template <ElemDtype elem>
__global__ void __launch_bounds__(kThreads, kMaximaBlocks)
    gather_with_maxima(const __grid_constant__ Maxima p) {
  __shared__ float exchange[kWarps][32 * (kLaneColumns + 1)];
  const GatherCodesArgs& a = p.args;
  follow_stream();
  const int32_t warp = static_cast<int32_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (warp >= p.warps) return;
  const int32_t step = p.by_pieces.quotient(warp);
  Tile t{slab_of(p, step), warp - step * p.pieces, 0};
  if (t.slab.rows == 0) return;
  t.column =
      min(t.piece * kWarpColumns + threadIdx.x % 32 * kLaneColumns, a.in.pitch - kLaneColumns);
  if (t.slab.group == kNoGroup) return clear_tile(a, t);

  const Sources sources(p, t.slab);
  if (t.piece == 0) write_scales(a, t.slab, sources.scales);
  HalfMaxima<elem> halves(sources);
  if (halves.is_exact) {
    gather_tile(p, t, sources, halves, exchange[threadIdx.x / 32]);
  } else {
    FloatMaxima<elem> floats(sources);
    gather_tile(p, t, sources, floats, exchange[threadIdx.x / 32]);
  }
}

LaunchStatus launch_with_maxima(const GatherCodesArgs& a, cudaStream_t stream) {
  const RowGroups& groups = a.in.groups;
  const LaunchStatus cleared = launch_clear(a.column_amax, groups.groups * a.in.columns, stream);
  if (!cleared.ok() || groups.rows * a.in.pitch == 0) return cleared;
  const int64_t pieces = ceil_div(a.in.pitch, kWarpColumns);
  Maxima p{};
  p.args = a;
  p.slabs = slabs_of(groups);
  if (p.slabs.count * pieces < kManyWarps * multiprocessor_count()) p.slabs = blocks_of(groups);
  const int64_t slabs = ceil_div(p.slabs.count, groups.groups);
  if (slabs * groups.groups > INT32_MAX / pieces) return refused("more codes than can be");
  p.top_k = Divisor::of(a.in.top_k);
  p.pitch = static_cast<uint32_t>(a.in.pitch);
  p.warps = static_cast<int32_t>(slabs * groups.groups * pieces);
  p.pieces = static_cast<int32_t>(pieces);
  p.by_pieces = Divisor::of(pieces);
  p.streams = static_cast<int32_t>(groups.groups);
  p.by_streams = Divisor::of(groups.groups);
  p.slabs_per_stream = static_cast<int32_t>(slabs);
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
                 static_cast<int32_t>(a.rows < 0 ? a.tokens * a.top_k : a.rows),
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
                 a.tokens < 0 ? groups.rows / a.in.top_k : a.tokens,
                 0,
                 0,
                 static_cast<int32_t>(a.in.top_k),
                 static_cast<int32_t>(groups.rows),
                 a.row_of_slot,
                 groups.jagged.begins + groups.groups,
                 a.in.inverse_scale,
                 a.inverse_scale};
  return launch_spread(p, a.in.pitch, stream);
}

}  // namespace moe8::cuda
