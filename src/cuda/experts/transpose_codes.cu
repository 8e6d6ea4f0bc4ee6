// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes turned round: rows become the contiguous axis, with one scale per group and column.
// Cost floor: each code is read once and written once, 2 bytes.
//
// A block brings a tile of 128 rows and 256 columns into shared memory, whole lines of the rows. A
// lane then takes 16 rows of four columns: 4 x 4 codes at a time change places by byte
// permutations, are decoded, scaled and encoded, and 16 bytes of each column are stored; eight
// lanes write a whole line. Scales are applied in half precision, two codes at once, where that
// gives the same codes: all but unusual ones.
#include <algorithm>

#include "cuda/experts/divisor.h"
#include "cuda/experts/float8_values.cuh"
#include "cuda/experts/transpose_codes.h"
#include "cuda/launch.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kTileRows = 128;
constexpr int kTileColumns = 256;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;  // each has 16 columns at a time, and all rows
constexpr int kBlocks = 5;             // on a multiprocessor
constexpr int kRows = kTokenRows;      // of a thread
constexpr int kColumns = 4;            // of a thread
constexpr int kChunks = kTileRows / kRows;
static_assert(kChunks == 8);                // times four words of four columns: the lanes of a warp
constexpr int kPieces = kTileColumns / 16;  // of 16 bytes, on a row of a tile
constexpr int kLoads = kTileRows * kPieces / kThreads;  // of a thread
constexpr int kRowStep = kThreads / kPieces;            // from load to load

struct Transpose {
  TransposeCodesArgs args;
  RowChunks tokens;
  Divisor top_k;
  uint32_t in_pitch;
  int64_t pitch;  // of the result
  int32_t tiles;  // in all; blocks past them write the scales
  int32_t wide;   // tiles across the columns
  Divisor by_wide;
  int32_t streams;  // 1, or one per group; see first_chunk
  Divisor by_streams;
  int32_t tiles_per_stream;
};

struct Shared {
  uint4 codes[kTileRows][kPieces];
  alignas(16) uint16_t ratios[kTileRows];  // scale of a row / largest of its chunk, as a half
  int32_t sources[kTileRows];
  RowChunk chunks[kChunks];
  float largest[kChunks];
  bool is_exact[kChunks];  // the ratios are, and so are products of them and codes
};

// ---- device helpers
// Block after block through the columns of 128 rows, then to the rows that lie as far in the next
// stream. When rows are gathered there is a stream per group: what a token has in several groups is
// then read at about the same time, and once from memory.
__device__ int64_t first_chunk(const Transpose& p, int32_t step) {
  const int32_t far = p.by_streams.quotient(step);
  return (int64_t{step - far * p.streams} * p.tiles_per_stream + far) * kChunks;
}

__device__ int32_t source_row(const Transpose& p, int32_t row) {
  const int32_t* slots = p.args.in.slot_of_row;
  return slots == nullptr ? row : p.top_k.quotient(slots[row]);
}

// Where a piece of a row lies: lanes that read the same words of eight chunks meet no bank twice.
__device__ uint4& at(Shared& s, int row, int piece) {
  return s.codes[row][piece ^ (row / kRows)];
}

// 16 bytes on their way into shared memory; zeros when nothing is there to read.
__device__ void copy_async(uint4& to, const uint8_t* from, bool is_there) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(&to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(is_there ? 16 : 0)
               : "memory");
}

__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

constexpr int32_t kNowhere = -1;  // the source of a row that is not there

// Where the rows of the tile come from, one a thread; a chunk is half a warp.
__device__ int32_t find_source(const Transpose& p, Shared& s, int64_t first) {
  const int row = threadIdx.x;
  const int64_t i = first + row / kRows;
  const RowChunk chunk = i < p.tokens.count ? p.tokens.at(i) : RowChunk{0, 0, kNoGroup, 0};
  if (row % kRows == 0) s.chunks[row / kRows] = chunk;
  const int32_t source =
      row % kRows < chunk.rows ? source_row(p, chunk.row + row % kRows) : kNowhere;
  s.sources[row] = source;
  return source;
}

__device__ void load_tile(const Transpose& p, Shared& s, int64_t column) {
  const RowCodes& in = p.args.in;
  const int piece = threadIdx.x % kPieces;
  const int64_t c = column + piece * 16;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int row = threadIdx.x / kPieces + i * kRowStep;
    const int32_t source = s.sources[row];
    const bool is_there = source != kNowhere && c < in.columns;
    const uint64_t from = uint64_t{static_cast<uint32_t>(source)} * p.in_pitch + c;
    copy_async(at(s, row, piece), in.codes + (is_there ? from : 0), is_there);
  }
}

// The scales of the tile's rows.
template <ElemDtype elem>
__device__ void load_scale(const Transpose& p, Shared& s, int32_t source) {
  const int row = threadIdx.x;
  const bool is_there = source != kNowhere;
  const float scale = is_there ? p.args.in.inverse_scale[source] : 0.0f;
  uint32_t bits = __float_as_uint(scale);
#pragma unroll
  for (int apart = 1; apart < kRows; apart *= 2) {
    bits = max(bits, __shfl_xor_sync(~0u, bits, apart));
  }
  const float largest = __uint_as_float(bits);
  const float ratio = is_there ? __fdiv_rn(scale, largest) : 0.0f;
  const bool fits = !is_there || (is_power_of_two(scale) && ratio >= kLeastRatio<elem>);
  const unsigned misfits = __ballot_sync(~0u, !fits) >> (row % 32 / kRows * kRows);
  s.ratios[row] = static_cast<uint16_t>(pack_halves(ratio, ratio));
  if (row % kRows != 0) return;
  s.largest[row / kRows] = largest;
  s.is_exact[row / kRows] = (misfits & 0xFFFF) == 0;
}

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
  const int64_t i = (static_cast<int>(blockIdx.x) - p.tiles) * int64_t{kThreads} + threadIdx.x;
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

// A thread's 16 rows of four columns, turned: [four rows][column].
__device__ void load_turned(Shared& s, int chunk, int piece,
                            uint32_t (&turned)[kRows / 4][kColumns]) {
  uint32_t x[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    x[r] = reinterpret_cast<const uint32_t*>(&at(s, chunk * kRows + r, piece))[threadIdx.x % 4];
  }
#pragma unroll
  for (int q = 0; q < kRows / 4; ++q) {
    transpose_bytes({x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]}, turned[q]);
  }
}

/// What a thread knows of the 16 rows that it has.
struct Rows {
  RowChunk chunk;
  uint32_t ratios[kRows / 2];
  float largest;
  bool is_exact;

  __device__ Rows(const Shared& s, int i)
      : chunk(s.chunks[i]), largest(s.largest[i]), is_exact(s.is_exact[i]) {
    const uint4* halves = reinterpret_cast<const uint4*>(s.ratios) + 2 * i;
    const uint4 low = halves[0], high = halves[1];
    ratios[0] = low.x, ratios[1] = low.y, ratios[2] = low.z, ratios[3] = low.w;
    ratios[4] = high.x, ratios[5] = high.y, ratios[6] = high.z, ratios[7] = high.w;
  }
};

// Four columns from `column` on; out: the first one's 16 codes.
template <ElemDtype elem>
__device__ void write_columns(const Transpose& p, const Rows& rows,
                              const uint32_t (&turned)[kRows / 4][kColumns], int64_t column,
                              uint8_t* out) {
  const TransposeCodesArgs& a = p.args;
  const auto left = static_cast<int>(min(a.in.columns - column, int64_t{kColumns}));
  const bool is_there = rows.chunk.rows > 0;
  const uint4 maxima =
      is_there ? load_amax(a.column_amax + rows.chunk.group * a.in.columns + column, left)
               : uint4{};
  const uint32_t amax[kColumns] = {maxima.x, maxima.y, maxima.z, maxima.w};
  uint32_t inexact = rows.is_exact ? 0u : ~0u;  // a bit per column
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const Factor factor = column_factor<elem>(amax[c], rows.largest);
    inexact |= factor.is_exact ? 0u : 1u << c;
    uint32_t codes[kRows / 4];
#pragma unroll
    for (int q = 0; q < kRows / 4; ++q) {
      codes[q] =
          rescale<elem>(turned[q][c], rows.ratios[2 * q], rows.ratios[2 * q + 1], factor.halves);
    }
    if (c < left) {
      __stcs(reinterpret_cast<uint4*>(out + c * p.pitch),
             make_uint4(codes[0], codes[1], codes[2], codes[3]));
    }
  }
  inexact &= is_there ? (1u << left) - 1 : 0u;
  for (; inexact != 0; inexact &= inexact - 1) {
    const int c = __ffs(static_cast<int>(inexact)) - 1;
    write_any_column<elem>(p, rows.chunk, column + c, out + c * p.pitch);
  }
}

// ---- kernel
template <ElemDtype elem>
__global__ void __launch_bounds__(kThreads, kBlocks)
    transpose_codes(const __grid_constant__ Transpose p) {
  __shared__ Shared s;
  const TransposeCodesArgs& a = p.args;
  follow_stream();
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (block >= p.tiles) return write_scale<elem>(p);
  const int32_t step = p.by_wide.quotient(block);
  const int64_t first_column = (block - step * p.wide) * int64_t{kTileColumns};
  const int64_t first = first_chunk(p, step);
  const bool has_row = threadIdx.x < kTileRows;
  const int32_t source = has_row ? find_source(p, s, first) : kNowhere;
  __syncthreads();
  load_tile(p, s, first_column);
  if (has_row) load_scale<elem>(p, s, source);
  wait_for_copies();
  __syncthreads();

  const int i = threadIdx.x % 32 / (32 / kChunks);
  if (first + i >= p.tokens.count) return;
  const Rows rows(s, i);
  const bool jagged = p.tokens.table != nullptr;
  uint8_t* out =
      a.codes + (jagged ? (first + i) * kRows
                        : max(rows.chunk.group, 0) * a.in.columns * p.pitch + rows.chunk.in_group);
#pragma unroll 1
  for (int piece = threadIdx.x / 32; piece < kPieces; piece += kWarps) {
    const int64_t column = first_column + piece * 16 + threadIdx.x % 4 * kColumns;
    if (column >= a.in.columns) return;
    uint32_t turned[kRows / 4][kColumns];
    load_turned(s, i, piece, turned);
    write_columns<elem>(p, rows, turned, column, out + column * p.pitch);
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
  const int64_t wide = ceil_div(a.in.columns, kTileColumns);
  const int64_t streams = a.in.slot_of_row == nullptr ? 1 : std::max<int64_t>(groups.groups, 1);
  const int64_t tiles = ceil_div(ceil_div(p.tokens.count, kChunks), streams);
  if (wide > 0 && tiles * streams > INT32_MAX / wide) return refused("more codes than can be");
  p.tiles = static_cast<int32_t>(tiles * streams * wide);
  p.wide = static_cast<int32_t>(wide);
  p.by_wide = Divisor::of(std::max<int64_t>(wide, 1));
  p.streams = static_cast<int32_t>(streams);
  p.by_streams = Divisor::of(streams);
  p.tiles_per_stream = static_cast<int32_t>(tiles);
  const int64_t scales = a.inverse_scale == nullptr ? 0 : groups.groups * a.in.columns;
  const int64_t blocks = p.tiles + ceil_div(scales, kThreads);
  if (blocks == 0) return {};
  return launch_early(a.in.elem == ElemDtype::E4M3 ? transpose_codes<ElemDtype::E4M3>
                                                   : transpose_codes<ElemDtype::E5M2>,
                      blocks, kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
