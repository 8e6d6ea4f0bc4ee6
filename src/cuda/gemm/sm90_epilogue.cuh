// SPDX-License-Identifier: BSD-3-Clause
// The end of a tile in sm90_grouped_gemm.cuh: scales, rounding, and stores that stop at the edges
// of the group and of the output. Each warp works alone.
#pragma once

#include "cuda/gemm/sm90_gemm_config.cuh"

namespace moe8::cuda::sm90 {

/// Where a warp's part of a tile goes: 16 rows of each piece, from `row` of the group and `col` on.
struct Target {
  int64_t base;        // row of out where the group, or its slice, starts
  int64_t scale_base;  // of the row scales, where the group starts
  int row, col;
  int rows, cols;  // of the group
  int group;
  bool empty;  // no contraction: exact 0, whatever the scales
};

template <typename C>
__device__ __forceinline__ Target target_of(const Problem& p, const Work& work, int rank,
                                            int warp) {
  using T = Traits<C>;
  const int first_row = T::kCooperative ? warp / 4 * 64 : 0;  // of the warpgroup in the tile
  return {
      .base = C::kGrouped == Grouped::DEPTH ? (int64_t{work.slice} * p.groups + work.group) * p.rows
                                            : work.first_row,
      .scale_base = C::kGrouped == Grouped::DEPTH ? int64_t{work.group} * p.rows : work.first_row,
      .row =
          work.row + (T::kShareLeft ? 0 : rank * C::kTileRows) + first_row + warp % 4 * kWarpRows,
      .col = work.col + (T::kShareLeft ? rank * C::kTileCols : 0),
      .rows = work.rows,
      .cols = p.cols,
      .group = work.group,
      .empty = work.depth == 0,
  };
}

/// Starts copying the scales of a tile to shared memory; 0 beyond the tile's rows and columns.
template <typename C>
__device__ __forceinline__ void fetch_scales(const Problem& p, const Target& t, float* scales,
                                             int lane) {
  using T = Traits<C>;
  using Copy = cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<uint32_t>;
  auto fetch = [&](float* to, const float* from, bool there) {
    Copy::copy(*reinterpret_cast<const uint32_t*>(from), *reinterpret_cast<uint32_t*>(to), there);
  };
  const float* cols = p.col_scale + (t.empty ? 0 : int64_t{t.group} * t.cols + t.col);
#pragma unroll
  for (int c = lane; c < C::kTileCols; c += 32) {
    const bool there = !t.empty && t.col + c < t.cols;
    fetch(scales + c, there ? cols + c : p.col_scale, there);
  }
#pragma unroll
  for (int i = 0; i < T::kPieces; i += 2) {  // 32 lanes: the rows of two pieces
    const int piece = i + lane / kWarpRows;
    const int row = t.row + piece * T::kPieceStride + lane % kWarpRows;
    const bool there = !t.empty && row < t.rows;
    if (piece < T::kPieces) {
      fetch(scales + C::kTileCols + piece * kWarpRows + lane % kWarpRows,
            there ? p.row_scale + t.scale_base + row : p.row_scale, there);
    }
  }
}

__device__ __forceinline__ uint32_t pack(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return reinterpret_cast<const uint32_t&>(pair);
}

/// Stores 16 rows x 64 columns of bf16 from the warp's patch, as far as `rows` and `cols` reach.
__device__ __forceinline__ void store_patch(const uint8_t* patch, __nv_bfloat16* out, int64_t pitch,
                                            int rows, int cols, bool vector_store, int lane) {
  const int row = lane / 8;
  const int col = lane % 8 * 8;
  const uint8_t* from = patch + row * kPatchPitch + col * 2;
  __nv_bfloat16* to = out + row * pitch + col;
  if (vector_store && col + 8 <= cols) {
    uint4 words[kWarpRows / 4];
#pragma unroll
    for (int r = 0; r < kWarpRows; r += 4) {
      words[r / 4] = *reinterpret_cast<const uint4*>(from + r * kPatchPitch);
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; r += 4) {
      if (row + r < rows) __stcs(reinterpret_cast<uint4*>(to + r * pitch), words[r / 4]);
    }
  } else {
#pragma unroll 1
    for (int r = row; r < min(rows, kWarpRows); r += 4, from += 4 * kPatchPitch, to += 4 * pitch) {
#pragma unroll 1
      for (int c = 0; c < min(8, cols - col); ++c) {
        to[c] = reinterpret_cast<const __nv_bfloat16*>(from)[c];
      }
    }
  }
}

/// Stores; or has the L2 add to what is there, so that nothing is waited for (docs/decisions/030). An
/// element is added to once, so the order of blocks plays no part.
template <typename C>
__device__ __forceinline__ void put(float* out, float x) {
  if constexpr (C::kAdds) {
    atomicAdd(out, x);
  } else {
    *out = x;
  }
}

/// Two neighbours of a row.
template <typename C>
__device__ __forceinline__ void put_pair(float* out, float x, float y, int cols,
                                         bool vector_store) {
  if (vector_store && cols >= 2) {
    if constexpr (C::kAdds) {
      atomicAdd(reinterpret_cast<float2*>(out), make_float2(x, y));
    } else {
      __stcs(reinterpret_cast<float2*>(out), make_float2(x, y));
    }
  } else {
    if (cols > 0) put<C>(out, x);
    if (cols > 1) put<C>(out + 1, y);
  }
}

/// Scales and stores a warp's 16 rows of one piece. `row`: of the warp's first in the group.
template <typename C>
__device__ __forceinline__ void store_rows(const Problem& p, const Target& t, int row,
                                           const float (&acc)[Traits<C>::kAccumulators],
                                           const float* row_scales, const float* col_scales,
                                           uint8_t* patch, int lane) {
  constexpr bool kScaled = is_fp8(C::kElement);
  const int rows = t.rows - row;
  const float row_scale[2] = {kScaled ? row_scales[lane / 4] : 1.0f,
                              kScaled ? row_scales[lane / 4 + 8] : 1.0f};
  // float32 is stored as it lies in the registers: a row's four lanes fill a sector.
  const int64_t first = (t.base + row + lane / 4) * p.out_pitch + t.col + lane % 4 * 2;
#pragma unroll
  for (int c0 = 0; c0 < C::kTileCols; c0 += kPatchCols) {
    if (t.col + c0 >= t.cols) break;
    uint32_t packed[kPatchCols / 8][2];
#pragma unroll
    for (int i = 0; i < kPatchCols / 8; ++i) {
      const float* a = &acc[c0 / 2 + i * 4];
      float v[4] = {a[0], a[1], a[2], a[3]};
      const int c = c0 + i * 8 + lane % 4 * 2;
      if constexpr (kScaled) {
        const float2 s = *reinterpret_cast<const float2*>(col_scales + c);
        // One after the other: the product of two scales could leave float32's range.
        v[0] = v[0] * row_scale[0] * s.x;
        v[1] = v[1] * row_scale[0] * s.y;
        v[2] = v[2] * row_scale[1] * s.x;
        v[3] = v[3] * row_scale[1] * s.y;
      }
      if constexpr (C::kOutput == FloatType::F32) {
        const int cols = t.cols - t.col - c;
        float* to = static_cast<float*>(p.out) + first + (c0 + i * 8);
        if (lane / 4 < rows) put_pair<C>(to, v[0], v[1], cols, p.vector_store);
        to += 8 * p.out_pitch;
        if (lane / 4 + 8 < rows) put_pair<C>(to, v[2], v[3], cols, p.vector_store);
      } else {
        packed[i][0] = pack(v[0], v[1]);
        packed[i][1] = pack(v[2], v[3]);
      }
    }
    if constexpr (C::kOutput == FloatType::BF16) {
      uint8_t* mine = patch + lane % 16 * kPatchPitch + lane / 16 * 16;
#pragma unroll
      for (int i = 0; i < kPatchCols / 16; ++i) {
        cute::SM90_U32x4_STSM_N::copy(packed[2 * i][0], packed[2 * i][1], packed[2 * i + 1][0],
                                      packed[2 * i + 1][1],
                                      *reinterpret_cast<cute::uint128_t*>(mine + i * 32));
      }
      __syncwarp();
      store_patch(patch,
                  static_cast<__nv_bfloat16*>(p.out) + (t.base + row) * p.out_pitch + t.col + c0,
                  p.out_pitch, rows, t.cols - t.col - c0, p.vector_store, lane);
      __syncwarp();
    }
  }
}

}  // namespace moe8::cuda::sm90
