// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes turned round: rows become the contiguous axis, with one scale per group and column. Cost
// floor: each code is read once and written once, 2 bytes.
//
// A thread owns 16 bytes of 16 rows: 4 x 4 codes at a time change places by byte permutations, then each
// is decoded, scaled and encoded. So each of its columns ends up as one 16-byte store. A warp is
// kLanesWide packets wide and kLanesHigh x 16 rows high.
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
      const int32_t row = chunk.row + r;
      rows[i] = in.slot_of_row == nullptr ? row : p.top_k.quotient(in.slot_of_row[row]);
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

// Four codes of a column: the scales are those of their rows and of the column.
template <ElemDtype elem>
__device__ uint32_t rescale(uint32_t codes, const float* row_scales, float scale) {
  float v[4];
  decode_four<elem>(codes, v);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = v[i] * row_scales[i] * scale;
  return encode_four<elem>(v[0], v[1], v[2], v[3]);
}

template <ElemDtype elem>
__device__ void write_scale(const Transpose& p) {
  const TransposeCodesArgs& a = p.args;
  const int64_t first = ceil_div(p.warps, kWarps);
  const int64_t i = (blockIdx.x - first) * kThreads + threadIdx.x;
  if (i >= a.in.groups.groups * a.in.columns) return;
  a.inverse_scale[i] = inverse_of(scale_of<elem>(a.column_amax[i], true));
}

// ---- kernel
template <ElemDtype elem>
__global__ void __launch_bounds__(kThreads, 4)
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
  float row_scales[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t at = sources.row(r) * a.in.pitch + column;
    row_scales[r] = sources.scale(r);
    const uint4 v = r < chunk.rows && column < a.in.columns
                        ? __ldcg(reinterpret_cast<const uint4*>(a.in.codes + at))
                        : uint4{};
    x[r][0] = v.x, x[r][1] = v.y, x[r][2] = v.z, x[r][3] = v.w;
  }
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
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t c = column + 4 * w + i;
      if (c >= a.in.columns) break;
      const float scale = scale_of<elem>(a.column_amax[group * a.in.columns + c], true);
      uint32_t codes[kRows / 4];
#pragma unroll
      for (int q = 0; q < kRows / 4; ++q) {  // padding is zero even where a scale is NaN
        codes[q] =
            byte_mask(chunk.rows - 4 * q) & rescale<elem>(turned[q][i], row_scales + 4 * q, scale);
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
