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
#include "cuda/quantize/clear.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 4;         // on a multiprocessor
constexpr int kRows = kTokenRows;  // of a thread
constexpr int kColumns = 16;       // of a thread
constexpr int kLanesWide = 8;      // each knows two of the kRows rows that they share
constexpr int kLanesHigh = 32 / kLanesWide;
static_assert(2 * kLanesWide == kRows);

struct Transpose {
  TransposeCodesArgs args;
  RowChunks tokens;
  Divisor top_k;
  uint32_t in_pitch;
  int64_t pitch;  // of the result
  int32_t warps;  // in all; blocks past them write the scales
  int32_t wide;   // warps across the columns
  Divisor by_wide;
  int32_t streams;  // 1, or one per group; see chunk_index_of
  Divisor by_streams;
  int32_t tiles_per_stream;  // a tile: kLanesHigh chunks
};

// ---- device helpers
// Warp after warp through the columns of a tile, then to the tile that lies as far in the next stream.
// When rows are gathered there is a stream per group: what a token has in several groups is then read
// at about the same time, and once from memory.
__device__ int64_t chunk_index_of(const Transpose& p, int32_t step, int lane) {
  const int32_t far = p.by_streams.quotient(step);
  const int64_t tile = int64_t{step - far * p.streams} * p.tiles_per_stream + far;
  return tile * kLanesHigh + lane / kLanesWide;
}

__device__ int32_t source_row(const Transpose& p, int32_t row) {
  const int32_t* slots = p.args.in.slot_of_row;
  return slots == nullptr ? row : p.top_k.quotient(slots[row]);
}

/// The rows of a chunk: where they are, and their scales over the largest of them, in half precision.
/// Rows that are not there are the last one once more.
template <ElemDtype elem>
struct Rows {
  int32_t own[2];
  uint32_t own_ratios;
  float largest;
  bool is_exact;  // the ratios are, and so are products of them and codes

  __device__ Rows(const Transpose& p, const RowChunk& chunk) {
    const int lane = threadIdx.x % kLanesWide;
    float scales[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      own[i] = source_row(p, chunk.row + max(min(2 * lane + i, chunk.rows - 1), 0));
      scales[i] = p.args.in.inverse_scale[own[i]];
    }
    uint32_t bits = max(__float_as_uint(scales[0]), __float_as_uint(scales[1]));
#pragma unroll
    for (int apart = 1; apart < kLanesWide; apart *= 2) {
      bits = max(bits, __shfl_xor_sync(~0u, bits, apart));
    }
    largest = __uint_as_float(bits);
    const float inverse = __fdiv_rn(1.0f, largest);
    const float low = scales[0] * inverse, high = scales[1] * inverse;
    own_ratios = pack_halves(low, high);
    const bool fit = is_power_of_two(scales[0]) && is_power_of_two(scales[1]) &&
                     low >= kLeastRatio<elem> && high >= kLeastRatio<elem>;
    const unsigned misfits = __ballot_sync(~0u, !fit);
    is_exact = (misfits >> (threadIdx.x % 32 / kLanesWide * kLanesWide) & 0xFF) == 0;
  }
  __device__ int32_t row(int r) const {
    return __shfl_sync(~0u, own[r % 2], r / 2, kLanesWide);
  }
  /// Of the rows 2 i and 2 i + 1.
  __device__ uint32_t ratios(int i) const {
    return __shfl_sync(~0u, own_ratios, i, kLanesWide);
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

/// The power of two that takes a product with a ratio to the column's code.
struct Factor {
  uint32_t halves;
  bool is_exact;
};

// Where amax is 0 all codes are, and any factor does.
template <ElemDtype elem>
__device__ Factor column_factor(uint32_t amax, float largest) {
  const float factor = amax == 0 ? 1.0f : scale_of<elem>(amax, true) * largest;
  return {pack_halves(factor, factor), factor >= 0x1p-24f && factor <= 0x1p15f};
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
                                 uint8_t* out) {
  const RowCodes& in = p.args.in;
  const uint32_t amax = p.args.column_amax[chunk.group * in.columns + column];
  const float scale = scale_of<elem>(amax, true);
#pragma unroll 1
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
  const int64_t i = (blockIdx.x - ceil_div(p.warps, kWarps)) * int64_t{kThreads} + threadIdx.x;
  if (i >= a.in.groups.groups * a.in.columns) return;
  a.inverse_scale[i] = inverse_of(scale_of<elem>(a.column_amax[i], true));
}

// The amax of four columns, `left` of which are there.
__device__ uint4 load_amax(const uint32_t* amax, int64_t left) {
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
  const int32_t warp = static_cast<int32_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (static_cast<int32_t>(blockIdx.x) * kWarps >= p.warps) return write_scale<elem>(p);
  if (warp >= p.warps) return;
  const int lane = threadIdx.x % 32;
  const int32_t step = p.by_wide.quotient(warp);
  const int64_t column = ((warp - step * p.wide) * kLanesWide + lane % kLanesWide) * kColumns;
  const int64_t chunk_index = chunk_index_of(p, step, lane);
  const bool is_there = chunk_index < p.tokens.count && column < a.in.columns;
  const RowChunk chunk =
      chunk_index < p.tokens.count ? p.tokens.at(chunk_index) : RowChunk{0, 0, kNoGroup, 0};

  // Lanes with nothing to read read something all the same: loads without conditions are under way
  // together.
  const Rows<elem> rows(p, chunk);
  const uint8_t* source = a.in.codes + min(column, a.in.pitch - kColumns);
  uint32_t x[kRows][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const uint64_t at = uint64_t{static_cast<uint32_t>(rows.row(r))} * p.in_pitch;
    const uint4 v = __ldcg(reinterpret_cast<const uint4*>(source + at));
    x[r][0] = v.x, x[r][1] = v.y, x[r][2] = v.z, x[r][3] = v.w;
  }
  uint32_t ratios[kRows / 2];
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) ratios[i] = rows.ratios(i);
  if (!is_there) return;

  const bool jagged = p.tokens.table != nullptr;
  uint8_t* out =
      a.codes + column * p.pitch +
      (jagged ? chunk_index * kRows : chunk.group * a.in.columns * p.pitch + chunk.in_group);
  const auto left = static_cast<int>(min(a.in.columns - column, int64_t{kColumns}));
  if (chunk.rows == 0) {
    for (int c = 0; c < left; ++c) __stcs(reinterpret_cast<uint4*>(out + c * p.pitch), uint4{});
    return;
  }
  if (chunk.rows < kRows) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 0; w < 4; ++w) x[r][w] = r < chunk.rows ? x[r][w] : 0u;
    }
  }
  const uint32_t* maxima = a.column_amax + chunk.group * a.in.columns + column;
  uint4 next = load_amax(maxima, left);
  uint32_t inexact = rows.is_exact ? 0u : ~0u;  // a bit per column
#pragma unroll
  for (int w = 0; w < kColumns / 4; ++w) {
    const uint32_t amax[4] = {next.x, next.y, next.z, next.w};
    if (w + 1 < kColumns / 4) next = load_amax(maxima + 4 * (w + 1), left - 4 * (w + 1));
    uint32_t turned[kRows / 4][4];  // [four rows][column]
#pragma unroll
    for (int q = 0; q < kRows / 4; ++q) {
      transpose_bytes({x[4 * q][w], x[4 * q + 1][w], x[4 * q + 2][w], x[4 * q + 3][w]}, turned[q]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = 4 * w + i;
      const Factor factor = column_factor<elem>(amax[i], rows.largest);
      inexact |= factor.is_exact ? 0u : 1u << c;
      uint32_t codes[kRows / 4];
#pragma unroll
      for (int q = 0; q < kRows / 4; ++q) {
        codes[q] = rescale<elem>(turned[q][i], ratios[2 * q], ratios[2 * q + 1], factor.halves);
      }
      if (c < left) {
        __stcs(reinterpret_cast<uint4*>(out + c * p.pitch),
               make_uint4(codes[0], codes[1], codes[2], codes[3]));
      }
    }
  }
  inexact &= (1u << left) - 1;
  for (; inexact != 0; inexact &= inexact - 1) {
    const int c = __ffs(static_cast<int>(inexact)) - 1;
    write_any_column<elem>(p, chunk, column + c, out + c * p.pitch);
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
  Transpose p{};
  p.args = a;
  p.tokens = tokens_of(groups);
  p.top_k = Divisor::of(a.in.top_k);
  p.in_pitch = static_cast<uint32_t>(a.in.pitch);
  p.pitch = groups.transposed_columns();
  const int64_t wide = ceil_div(a.in.columns, kLanesWide * kColumns);
  const int64_t streams = a.in.slot_of_row == nullptr ? 1 : std::max<int64_t>(groups.groups, 1);
  const int64_t tiles = ceil_div(ceil_div(p.tokens.count, kLanesHigh), streams);
  if (groups.rows == 0) {  // there is nothing to read, but padding to write
    const int64_t bytes = p.tokens.count * kRows * a.in.columns;
    const LaunchStatus cleared =
        launch_clear(reinterpret_cast<uint32_t*>(a.codes), bytes / 4, stream);
    if (!cleared.ok()) return cleared;
  } else if (wide > 0 && tiles * streams > INT32_MAX / wide) {
    return refused("more codes than can be");
  } else {
    p.warps = static_cast<int32_t>(tiles * streams * wide);
  }
  p.wide = static_cast<int32_t>(wide);
  p.by_wide = Divisor::of(std::max<int64_t>(wide, 1));
  p.streams = static_cast<int32_t>(streams);
  p.by_streams = Divisor::of(streams);
  p.tiles_per_stream = static_cast<int32_t>(tiles);
  const int64_t scales = a.inverse_scale == nullptr ? 0 : groups.groups * a.in.columns;
  const int64_t blocks = ceil_div(p.warps, kWarps) + ceil_div(scales, kThreads);
  if (blocks == 0) return {};
  return launch_early(a.in.elem == ElemDtype::E4M3 ? transpose_codes<ElemDtype::E4M3>
                                                   : transpose_codes<ElemDtype::E5M2>,
                      blocks, kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
