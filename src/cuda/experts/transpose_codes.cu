// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes turned round: rows become the contiguous axis, with one scale per group and column. Cost
// floor: each code is read once and written once, 2 bytes.
//
// A thread owns 16 bytes of 16 rows: 4 x 4 codes at a time change places by byte permutations, then each
// is decoded, scaled and encoded. So each of its columns ends up as one 16-byte store. A warp is
// kLanesWide packets wide and kLanesHigh x 16 rows high. Scales are applied in half precision, two
// codes at once, where that gives the same codes: all but unusual ones.
#include <algorithm>

#include "cuda/experts/divisor.h"
#include "cuda/experts/float8_values.cuh"
#include "cuda/experts/transpose_codes.h"
#include "cuda/launch.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = kTokenRows;  // of a thread
constexpr int kColumns = 16;       // of a thread
constexpr int kLanesWide = 8;
constexpr int kLanesHigh = 32 / kLanesWide;
constexpr int kBlocks = 4;  // on a multiprocessor

struct Transpose {
  TransposeCodesArgs args;
  RowChunks tokens;
  Divisor top_k;
  int64_t pitch;             // of the result
  int64_t wide;              // warps across the columns
  int64_t streams;           // 1, or one per group; see chunk_index_of
  int64_t tiles_per_stream;  // a tile: kLanesHigh chunks
  int64_t warps;             // in all; blocks past them write the scales
};

// ---- device helpers
// Warp after warp through the columns of a tile, then to the tile that lies as far in the next stream.
// When rows are gathered there is a stream per group: what a token has in several groups is then read
// at about the same time, and once from memory.
__device__ int64_t chunk_index_of(const Transpose& p, int64_t warp, int lane) {
  const int64_t i = warp / p.wide;
  const int64_t tile = i % p.streams * p.tiles_per_stream + i / p.streams;
  return tile * kLanesHigh + lane / kLanesWide;
}

__device__ int32_t source_row(const Transpose& p, int32_t row) {
  const int32_t* slots = p.args.in.slot_of_row;
  return slots == nullptr ? row : p.top_k.quotient(slots[row]);
}

// The rows of a chunk: where they start in the codes, and their scales. Each of the kLanesWide lanes
// that have the chunk in common loads some.
struct Sources {
  static constexpr int kOwn = kRows / kLanesWide;
  int32_t rows[kOwn];
  float scales[kOwn];

  __device__ Sources(const Transpose& p, const RowChunk& chunk) : rows{}, scales{} {
    const RowCodes& in = p.args.in;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int r = i * kLanesWide + static_cast<int>(threadIdx.x) % kLanesWide;
      if (r >= chunk.rows) continue;
      rows[i] = source_row(p, chunk.row + r);
      scales[i] = in.inverse_scale[rows[i]];
    }
  }
  __device__ int32_t row(int r) const {
    return __shfl_sync(~0u, rows[r / kLanesWide], r % kLanesWide, kLanesWide);
  }
  __device__ float scale(int r) const {
    return __shfl_sync(~0u, scales[r / kLanesWide], r % kLanesWide, kLanesWide);
  }
};

// out[c] = the bytes c of the four words in[0 .. 3].
__device__ void transpose_bytes(const uint32_t (&in)[4], uint32_t (&out)[4]) {
  const uint32_t low01 = __byte_perm(in[0], in[1], 0x5140);   // 0.0 1.0 0.1 1.1
  const uint32_t high01 = __byte_perm(in[0], in[1], 0x7362);  // 0.2 1.2 0.3 1.3
  const uint32_t low23 = __byte_perm(in[2], in[3], 0x5140);
  const uint32_t high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

// All ones in the bytes of the first `rows` of four rows.
__device__ uint32_t byte_mask(int rows) {
  return rows >= 4 ? ~0u : rows <= 0 ? 0u : (1u << (8 * rows)) - 1;
}

// The scales of a thread's rows as halves, over the largest of them.
struct RowRatios {
  uint32_t pairs[kRows / 2];
  float largest;
  bool is_exact = true;

  template <ElemDtype elem>
  __device__ static RowRatios of(const Sources& sources) {
    RowRatios r;
    float scales[kRows];
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      scales[i] = sources.scale(i);
      largest = max(largest, __float_as_uint(scales[i]));
      r.is_exact &= is_power_of_two(scales[i]);
    }
    r.largest = __uint_as_float(largest);
    const float inverse = __fdiv_rn(1.0f, r.largest);
#pragma unroll
    for (int i = 0; i < kRows; i += 2) {
      const float low = scales[i] * inverse, high = scales[i + 1] * inverse;
      r.is_exact &= (scales[i] == 0.0f || low >= kLeastRatio<elem>)&&(scales[i + 1] == 0.0f ||
                                                                      high >= kLeastRatio<elem>);
      r.pairs[i / 2] = pack_halves(low, high);
    }
    return r;
  }
};

// The power of two that takes a product with a ratio to the column's code, in both halves; 0 where no
// half is it. Where amax is 0 all codes are, and any factor does.
template <ElemDtype elem>
__device__ uint32_t column_factor(uint32_t amax, float largest) {
  const float factor = amax == 0 ? 1.0f : scale_of<elem>(amax, true) * largest;
  return factor >= 0x1p-24f && factor <= 0x1p15f ? pack_halves(factor, factor) : 0u;
}

// Four codes of a column.
template <ElemDtype elem>
__device__ uint32_t rescale(uint32_t codes, uint32_t ratios01, uint32_t ratios23, uint32_t factor) {
  const uint32_t v01 = multiply_halves(multiply_halves(decode_pair<elem>(codes), ratios01), factor);
  const uint32_t v23 =
      multiply_halves(multiply_halves(decode_pair<elem>(codes >> 16), ratios23), factor);
  return encode_halves<elem>(v01) | encode_halves<elem>(v23) << 16;
}

// A column of a chunk code by code in float32, whatever the scales.
template <ElemDtype elem>
__device__ void write_any_column(const Transpose& p, const RowChunk& chunk, int64_t column,
                                 float scale, uint8_t* out) {
  const RowCodes& in = p.args.in;
  for (int r = 0; r < kRows; ++r) {
    uint32_t code = 0;
    if (r < chunk.rows) {
      const int64_t row = source_row(p, chunk.row + r);
      float v[2];
      unpack_halves(decode_pair<elem>(in.codes[row * in.pitch + column]), v[0], v[1]);
      code = encode_pair<elem>(v[0] * in.inverse_scale[row] * scale, 0.0f);
    }
    out[r] = static_cast<uint8_t>(code);
  }
}

template <ElemDtype elem>
__device__ void write_scale(const Transpose& p) {
  const TransposeCodesArgs& a = p.args;
  const int64_t first = ceil_div(p.warps, kWarps);
  const int64_t i = (blockIdx.x - first) * kThreads + threadIdx.x;
  if (i >= a.in.groups.groups * a.in.columns) return;
  a.inverse_scale[i] = inverse_of(scale_of<elem>(a.column_amax[i], true));
}

// The amax of a thread's four columns from `column` on.
__device__ uint4 load_amax(const TransposeCodesArgs& a, int64_t group, int64_t column) {
  const uint32_t* amax = a.column_amax + group * a.in.columns + column;
  const int64_t left = a.in.columns - column;
  if (left >= 4 && reinterpret_cast<uintptr_t>(amax) % 16 == 0) {
    return *reinterpret_cast<const uint4*>(amax);
  }
  return {left > 0 ? amax[0] : 0u, left > 1 ? amax[1] : 0u, left > 2 ? amax[2] : 0u,
          left > 3 ? amax[3] : 0u};
}

// ---- kernel
template <ElemDtype elem>
__global__ void __launch_bounds__(kThreads, kBlocks)
    transpose_codes(const __grid_constant__ Transpose p) {
  const TransposeCodesArgs& a = p.args;
  follow_stream();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (static_cast<int64_t>(blockIdx.x) * kWarps >= p.warps) return write_scale<elem>(p);
  const int lane = threadIdx.x % 32;
  const int64_t column = (warp % p.wide * kLanesWide + lane % kLanesWide) * kColumns;
  const int64_t chunk_index = chunk_index_of(p, warp, lane);
  const bool is_there = warp < p.warps && chunk_index < p.tokens.count;
  const RowChunk chunk = is_there ? p.tokens.at(chunk_index) : RowChunk{0, 0, kNoGroup, 0};
  const Sources sources(p, chunk);

  uint32_t x[kRows][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t at = sources.row(r) * a.in.pitch + column;
    const uint4 v = r < chunk.rows && column < a.in.columns
                        ? __ldcg(reinterpret_cast<const uint4*>(a.in.codes + at))
                        : uint4{};
    x[r][0] = v.x, x[r][1] = v.y, x[r][2] = v.z, x[r][3] = v.w;
  }
  const RowRatios ratios = RowRatios::of<elem>(sources);
  if (!is_there) return;

  const int64_t group = chunk.group == kNoGroup ? 0 : chunk.group;
  const bool jagged = p.tokens.table != nullptr;
  uint8_t* out =
      a.codes + (jagged ? chunk_index * kRows : group * a.in.columns * p.pitch + chunk.in_group);
#pragma unroll
  for (int w = 0; w < kColumns / 4; ++w) {
    uint32_t turned[kRows / 4][4];  // [four rows][column]
#pragma unroll
    for (int q = 0; q < kRows / 4; ++q) {
      transpose_bytes({x[4 * q][w], x[4 * q + 1][w], x[4 * q + 2][w], x[4 * q + 3][w]}, turned[q]);
    }
    const uint4 amaxes = load_amax(a, group, column + 4 * w);
    const uint32_t amax[4] = {amaxes.x, amaxes.y, amaxes.z, amaxes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t c = column + 4 * w + i;
      if (c >= a.in.columns) break;
      const uint32_t factor = column_factor<elem>(amax[i], ratios.largest);
      if (chunk.rows > 0 && (!ratios.is_exact || factor == 0)) {
        write_any_column<elem>(p, chunk, c, scale_of<elem>(amax[i], true), out + c * p.pitch);
        continue;
      }
      uint32_t codes[kRows / 4];
#pragma unroll
      for (int q = 0; q < kRows / 4; ++q) {
        codes[q] = byte_mask(chunk.rows - 4 * q) & rescale<elem>(turned[q][i], ratios.pairs[2 * q],
                                                                 ratios.pairs[2 * q + 1], factor);
      }
      __stcs(reinterpret_cast<uint4*>(out + c * p.pitch),
             make_uint4(codes[0], codes[1], codes[2], codes[3]));
    }
  }
}

}  // namespace

// ---- launch
LaunchStatus launch_transpose_codes(const TransposeCodesArgs& a, cudaStream_t stream) {
  const RowGroups& groups = a.in.groups;
  if (const char* why = refusal_of(a.in)) return refused(why);
  if (reinterpret_cast<uintptr_t>(a.codes) % 16 != 0) {
    return refused("codes that are not 16-byte aligned");
  }
  Transpose p{a, tokens_of(groups), Divisor::of(a.in.top_k), groups.transposed_columns(), 0, 1, 0,
              0};
  p.wide = ceil_div(a.in.columns, kLanesWide * kColumns);
  if (a.in.slot_of_row != nullptr) p.streams = std::max<int64_t>(groups.groups, 1);
  p.tiles_per_stream = ceil_div(ceil_div(p.tokens.count, kLanesHigh), p.streams);
  p.warps = p.tiles_per_stream * p.streams * p.wide;
  const int64_t scales = a.inverse_scale == nullptr ? 0 : groups.groups * a.in.columns;
  const int64_t blocks = ceil_div(p.warps, kWarps) + ceil_div(scales, kThreads);
  if (blocks == 0) return {};
  return launch_early(a.in.elem == ElemDtype::E4M3 ? transpose_codes<ElemDtype::E4M3>
                                                   : transpose_codes<ElemDtype::E5M2>,
                      blocks, kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
