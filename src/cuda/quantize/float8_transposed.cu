// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes with one scale per group and column, transposed: rows become the contiguous axis.
// Cost floor: each element is read once and its code written once, 3 bytes in bf16.
//
// A thread owns a 16-byte packet of columns in 16 rows, so that each of its columns ends up as one
// 16-byte store: the transpose happens in registers, as the conversion may pack two rows as well as
// two columns. A warp is 8 packets wide and 4 x 16 rows high: it reads whole 128-byte lines. With
// one scale for all, the same registers give the codes by rows: one byte more, two bytes less to
// read than a kernel of their own.
#include "cuda/launch.cuh"
#include "cuda/quantize/float8.cuh"
#include "cuda/quantize/float8.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTokens = kTokenRows;  // rows of a thread
constexpr int kLanesWide = 8;
constexpr int kLanesHigh = 4;

template <typename T>
constexpr int kColumns = 16 / sizeof(T);  // columns of a thread

// Where the codes go: to whole 16-byte pieces, or to rows of a joined result that begin or end
// anywhere.
enum class Place { WHOLE, ANY };

struct Transposed {
  Float8TransposedArgs args;
  RowChunks tokens;
  int64_t pitch;   // of the codes
  int64_t height;  // rows of the result that this part writes in each of equal groups
  int32_t wide;    // warps across the columns
  int64_t warps;   // in all; blocks past them write the scales
};

// ---- device helpers
template <typename T>
struct Columns {
  uint32_t words[4];

  __device__ float get(int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[i]);
    const uint32_t word = words[i / 2];
    return __uint_as_float(i % 2 ? word & 0xFFFF0000u : word << 16);
  }
};

template <typename T, bool kAligned>
__device__ Columns<T> load_columns(const T* p, int64_t left) {
  if constexpr (kAligned) {
    const uint4 v = __ldcg(reinterpret_cast<const uint4*>(p));
    return {{v.x, v.y, v.z, v.w}};
  }
  Columns<T> columns{};
#pragma unroll
  for (int i = 0; i < kColumns<T>; ++i) {
    const uint32_t bits = i < left ? element_bits(p + i) : 0u;
    columns.words[i * sizeof(T) / 4] |= bits << (sizeof(T) == 2 && i % 2 ? 16 : 0);
  }
  return columns;
}

// All ones in the bytes of the first `rows` of four rows.
__device__ uint32_t byte_mask(int rows) {
  return rows >= 4 ? ~0u : rows <= 0 ? 0u : (1u << (8 * rows)) - 1;
}

template <ElemDtype elem>
__device__ void write_scale(const Transposed& p) {
  const Float8TransposedArgs& a = p.args;
  const int64_t first = (p.warps + kWarps - 1) / kWarps;
  const int64_t i = (blockIdx.x - first) * kThreads + threadIdx.x;
  if (i >= a.groups.groups * a.columns) return;
  const uint32_t amax = a.amax[a.one_scale ? 0 : i];
  const float scale = scale_of<elem>(amax, a.round_scales_to_power_of_2);
  a.inverse_scale[i] = inverse_of(scale);
  if (a.scale != nullptr) a.scale[i] = scale;
}

// Rows of a chunk by the one scale. Past the last column the codes are zeros, whatever the scale.
template <typename T, ElemDtype elem>
__device__ void store_rows(const Float8TransposedArgs& a, const RowChunk& chunk, int64_t column,
                           const Columns<T> (&x)[kTokens], float scale) {
  uint8_t* out = a.row_codes + chunk.row * a.row_pitch + column;
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    if (i >= chunk.rows) return;
    uint32_t words[kColumns<T> / 4];
#pragma unroll
    for (int q = 0; q < kColumns<T> / 4; ++q) {
      const auto left = static_cast<int>(min(a.columns - column - 4 * q, int64_t{4}));
      words[q] = byte_mask(left) &
                 encode_four<elem>(x[i].get(4 * q) * scale, x[i].get(4 * q + 1) * scale,
                                   x[i].get(4 * q + 2) * scale, x[i].get(4 * q + 3) * scale);
    }
    if constexpr (sizeof(T) == 2) {
      __stcs(reinterpret_cast<uint2*>(out + i * a.row_pitch), make_uint2(words[0], words[1]));
    } else {
      __stcs(reinterpret_cast<uint32_t*>(out + i * a.row_pitch), words[0]);
    }
  }
}

// The codes of one column in 16 rows, or in the first `rows` of them where no 16-byte store may go.
template <Place kPlace>
__device__ void store_column(uint8_t* out, const uint32_t (&codes)[kTokens / 4], int64_t rows) {
  if constexpr (kPlace == Place::WHOLE) {
    __stcs(reinterpret_cast<uint4*>(out), make_uint4(codes[0], codes[1], codes[2], codes[3]));
  } else {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (i < rows) out[i] = static_cast<uint8_t>(codes[i / 4] >> (i % 4 * 8));
    }
  }
}

// ---- kernel
template <typename T, ElemDtype elem, bool kAligned, bool kWithRows, Place kPlace = Place::WHOLE>
__global__ void __launch_bounds__(kThreads)
    quantize_transposed(const __grid_constant__ Transposed p) {
  const Float8TransposedArgs& a = p.args;
  follow_stream();
  const int lane = threadIdx.x % 32;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (static_cast<int64_t>(blockIdx.x) * kWarps >= p.warps) return write_scale<elem>(p);

  const int64_t column = (warp % p.wide * kLanesWide + lane % kLanesWide) * kColumns<T>;
  const int64_t chunk_index = warp / p.wide * kLanesHigh + lane / kLanesWide;
  if (chunk_index >= p.tokens.count || column >= (kWithRows ? a.row_pitch : a.columns)) return;
  const RowChunk chunk = p.tokens.at(chunk_index);

  Columns<T> x[kTokens];
  const T* source = static_cast<const T*>(a.x) + chunk.row * a.columns + column;
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const bool is_there = i < chunk.rows && (!kWithRows || column < a.columns);
    x[i] = is_there ? load_columns<T, kAligned>(source + i * a.columns, a.columns - column)
                    : Columns<T>{};
  }
  if constexpr (kWithRows) {
    const float scale = scale_of<elem>(a.amax[0], a.round_scales_to_power_of_2);
    store_rows<T, elem>(a, chunk, column, x, scale);
    if (column == 0) {
      for (int i = 0; i < chunk.rows; ++i) a.row_inverse_scale[chunk.row + i] = inverse_of(scale);
    }
    if (column >= a.columns) return;
  }
  // Padding is zero even where the scale is NaN.
  uint32_t mask[kTokens / 4];
#pragma unroll
  for (int q = 0; q < kTokens / 4; ++q) mask[q] = byte_mask(chunk.rows - 4 * q);

  const int64_t group = chunk.group == kNoGroup ? 0 : chunk.group;
  const bool jagged = p.tokens.table != nullptr;
  uint8_t* out = a.codes + (jagged ? chunk_index * kTokens
                                   : group * a.columns * p.pitch + chunk.in_group + a.joined.first);
#pragma unroll
  for (int c = 0; c < kColumns<T>; ++c) {
    if (!kAligned && column + c >= a.columns) break;
    const uint32_t amax = a.amax[a.one_scale ? 0 : group * a.columns + column + c];
    const float scale = scale_of<elem>(amax, a.round_scales_to_power_of_2);
    uint32_t codes[kTokens / 4];
#pragma unroll
    for (int q = 0; q < kTokens / 4; ++q) {
      codes[q] =
          mask[q] & encode_four<elem>(x[4 * q].get(c) * scale, x[4 * q + 1].get(c) * scale,
                                      x[4 * q + 2].get(c) * scale, x[4 * q + 3].get(c) * scale);
    }
    store_column<kPlace>(out + (column + c) * p.pitch, codes, p.height - chunk.in_group);
  }
}

// ---- launch
using Kernel = void (*)(Transposed);

// Whether a part of a joined result covers whole 16-byte pieces of its columns.
bool is_whole(const Transposed& p) {
  return p.args.joined.first % kTokens == 0 && p.height % kTokens == 0;
}

template <typename T, ElemDtype elem>
Kernel choose(const Transposed& p) {
  const Float8TransposedArgs& a = p.args;
  if (a.joined.is_joined() && !is_whole(p)) {
    return quantize_transposed<T, elem, false, false, Place::ANY>;
  }
  const bool aligned = is_aligned(a.x, a.columns, sizeof(T));
  if (a.row_codes != nullptr) {
    return aligned ? quantize_transposed<T, elem, true, true>
                   : quantize_transposed<T, elem, false, true>;
  }
  return aligned ? quantize_transposed<T, elem, true, false>
                 : quantize_transposed<T, elem, false, false>;
}

Kernel choose(const Transposed& p) {
  using enum ElemDtype;
  const bool is_bf16 = p.args.x_type == FloatType::BF16;
  if (p.args.elem == E4M3) return is_bf16 ? choose<BFloat16, E4M3>(p) : choose<float, E4M3>(p);
  return is_bf16 ? choose<BFloat16, E5M2>(p) : choose<float, E5M2>(p);
}

// The part's chunks: its own rows, and the padding of a joined result when it is the last one.
void place_joined(Transposed& p) {
  const Float8TransposedArgs& a = p.args;
  p.pitch = round_up(a.joined.group_rows, a.groups.padding);
  p.height = a.joined.is_last(a.groups) ? p.pitch - a.joined.first : a.groups.group_rows;
  p.tokens = counted_chunks(a.groups, p.height, kTokenRows);
}

}  // namespace

LaunchStatus launch_float8_transposed(const Float8TransposedArgs& a, cudaStream_t stream) {
  const bool fits = a.elem == ElemDtype::E4M3 || a.elem == ElemDtype::E5M2;
  if (!fits) return refused("a format that the hardware does not convert to");
  if (!a.groups.is_valid()) return refused("more rows than 32 bits count");
  if (a.row_codes != nullptr &&
      (!a.one_scale || a.row_pitch % 16 != 0 || a.row_pitch < a.columns)) {
    return refused("codes by rows without one scale, or of a pitch that does not fit");
  }
  if (!a.joined.fits(a.groups) || (a.joined.is_joined() && a.row_codes != nullptr)) {
    return refused("joined rows that do not fit into their result, or with codes by rows");
  }
  Transposed p{a, tokens_of(a.groups), a.groups.transposed_columns(), 0, 0, 0};
  if (a.joined.is_joined()) place_joined(p);
  const int columns = a.x_type == FloatType::BF16 ? kColumns<BFloat16> : kColumns<float>;
  const int64_t widest = a.row_codes != nullptr ? a.row_pitch : a.columns;
  p.wide = static_cast<int32_t>(ceil_div(widest, kLanesWide * columns));
  p.warps = ceil_div(p.tokens.count, kLanesHigh) * p.wide;
  const int64_t scales = a.inverse_scale == nullptr ? 0 : a.groups.groups * a.columns;
  const int64_t blocks = ceil_div(p.warps, kWarps) + ceil_div(scales, kThreads);
  if (blocks == 0) return {};
  return launch_early(choose(p), blocks, kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
