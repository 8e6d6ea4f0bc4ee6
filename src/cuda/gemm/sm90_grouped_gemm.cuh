// SPDX-License-Identifier: BSD-3-Clause
// The grouped matrix product for sm_90a: one kernel template for out, grad_input and grad_weight,
// FP8 and bf16. Which instances exist and when each is taken: grouped_gemm.cpp.
//
// Maths   out[r, c] = row_scale[r] col_scale[c] * sum_d left[r, d] right[c, d] for each group, all
//         by the tensor cores; with promotion, float32 sums of short tensor-core sums.
// Tile    a cluster of two CTAs computes two tiles side by side and shares the operand common to
//         them; 128 bytes of contraction a stage, as many stages as shared memory holds.
//         Cooperative: both multiplying warpgroups share a tile. Pingpong: each has its own tile,
//         one multiplies while the other stores. Twin: each has its own tile and its own stages,
//         and both multiply whenever they can.
// Floor   2 rows cols depth flop at what the power limit leaves of the tensor cores; for few rows a
//         group, one read of all operands and one write of out.
#pragma once

#include <algorithm>

#include "cuda/gemm/sm90_ptx.cuh"
#include "cuda/gemm/sm90_tensor_map.h"
#include "cuda/gemm/sm90_tile_walk.cuh"

namespace moe8::cuda::sm90 {

// ---- Configuration ------------------------------------------------------------------------------

enum class Schedule { kCooperative, kPingpong, kTwin };
enum class Shared { kLeft, kRight };  // the operand that both CTAs of a cluster use

/// One instance of the kernel. kPromoteBlocks_: stages between promotions to float32; 0: accumulate
/// in the tensor cores throughout. (A type, because nvcc 13.0 cannot pass structs as arguments.)
template <GemmElement kElement_, GemmOutput kOutput_, Grouped kGrouped_, Major kLeft, Major kRight,
          int kRows, int kCols, Schedule kSchedule_, Shared kShared_, int kPromoteBlocks_>
struct Config {
  static constexpr GemmElement kElement = kElement_;
  static constexpr GemmOutput kOutput = kOutput_;
  static constexpr Grouped kGrouped = kGrouped_;
  static constexpr Major kLeftMajor = kLeft;
  static constexpr Major kRightMajor = kRight;
  static constexpr int kTileRows = kRows;
  static constexpr int kTileCols = kCols;
  static constexpr Schedule kSchedule = kSchedule_;
  static constexpr Shared kShared = kShared_;
  static constexpr int kPromoteBlocks = kPromoteBlocks_;
};

inline constexpr int kConsumerGroups = 2;
inline constexpr int kConsumerWarps = 4 * kConsumerGroups;
inline constexpr int kThreads = 128 * (kConsumerGroups + 1);  // + the warpgroup that loads
inline constexpr int kCluster = 2;
// 168 registers a thread at launch; setmaxnreg moves them from the loading group to the others.
inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;
inline constexpr int kSharedMemory = 232448;  // what a CTA may have on compute capability 9.0
inline constexpr int kBarrierBytes = 256;
// A warp holds 16 rows of each 64-row piece. It passes them to 16-byte stores through a patch of 64
// columns; 16 bytes of padding a row keep the eight rows that one instruction touches in different
// banks.
inline constexpr int kWarpRows = 16;
inline constexpr int kPatchCols = 64;
inline constexpr int kPatchPitch = kPatchCols * 2 + 16;
inline constexpr int kPatchBytes = kWarpRows * kPatchPitch;

/// What follows from a Config.
template <typename C>
struct Traits {
  static constexpr bool kPingpong = C::kSchedule == Schedule::kPingpong;
  static constexpr bool kCooperative = C::kSchedule == Schedule::kCooperative;
  /// Rings of stages, each with a loading warp.
  static constexpr int kRings = C::kSchedule == Schedule::kTwin ? kConsumerGroups : 1;
  static constexpr bool kShareLeft = C::kShared == Shared::kLeft;
  static constexpr int kElementBytes = C::kElement == GemmElement::kE4M3 ? 1 : 2;
  static constexpr int kBlockDepth = kSwizzleBytes / kElementBytes;
  static constexpr int kStepDepth = kStepBytes / kElementBytes;
  static constexpr int kLeftBytes = C::kTileRows * kSwizzleBytes;
  static constexpr int kRightBytes = C::kTileCols * kSwizzleBytes;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  static constexpr int kSuperRows = C::kTileRows * (kShareLeft ? 1 : kCluster);
  static constexpr int kSuperCols = C::kTileCols * (kShareLeft ? kCluster : 1);
  /// 64-row pieces of a tile that one warpgroup computes, and the rows between them.
  static constexpr int kPieces = C::kTileRows / 64 / (kCooperative ? kConsumerGroups : 1);
  static constexpr int kPieceStride = kCooperative ? 64 * kConsumerGroups : 64;
  static constexpr int kAccumulators = C::kTileCols / 2;  // registers of a thread for one piece
  /// Each warp keeps the scales of its tile: of the columns, then of its 16 rows of each piece.
  static constexpr int kScales = C::kTileCols + kPieces * kWarpRows;
  static constexpr int kOtherBytes =
      kConsumerWarps * (kPatchBytes + kScales * int{sizeof(float)}) + kBarrierBytes;
  static constexpr int kStages = (kSharedMemory - kOtherBytes) / kStageBytes / kRings;  // of a ring
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kRings * kRingBytes + kOtherBytes;
  /// Consumer warps that read a stage, in both CTAs.
  static constexpr int kReaders = kCluster * (kCooperative ? kConsumerWarps : 4);
  /// bf16 groups of tokens are not padded: what follows a group is zeroed in shared memory.
  static constexpr bool kZeroTail =
      C::kGrouped == Grouped::kDepth && C::kElement == GemmElement::kBFloat16;

  using Instruction = Wgmma<C::kElement, C::kTileCols, C::kLeftMajor, C::kRightMajor>;
  using Walk = TileWalk<C::kGrouped, kSuperRows, kSuperCols>;

  static_assert(C::kTileRows % (64 * (kCooperative ? kConsumerGroups : 1)) == 0);
  static_assert(kStages >= 3 && (2 * kStages * kRings + kConsumerGroups) * 8 <= kBarrierBytes);
  static_assert(!kZeroTail || C::kPromoteBlocks == 0);
};

// ---- Device helpers -----------------------------------------------------------------------------

/// Where things lie in shared memory. full[s]: stage s has arrived. empty[s]: both CTAs have read
/// it. turn[g]: warpgroup g may multiply.
template <typename T>
struct Storage {
  uint8_t* base;
  int ring;

  __device__ uint8_t* left(int stage) const {
    return base + ring * T::kRingBytes + stage * T::kStageBytes;
  }
  __device__ uint8_t* right(int stage) const { return left(stage) + T::kLeftBytes; }
  __device__ uint64_t* barriers() const {
    return reinterpret_cast<uint64_t*>(base + T::kRings * T::kRingBytes);
  }
  __device__ uint8_t* patch(int warp) const {
    return base + T::kRings * T::kRingBytes + kBarrierBytes + warp * kPatchBytes;
  }
  __device__ float* scales(int warp) const {
    return reinterpret_cast<float*>(patch(kConsumerWarps)) + warp * T::kScales;
  }
  __device__ uint64_t* full(int stage) const { return barriers() + ring * T::kStages + stage; }
  __device__ uint64_t* empty(int stage) const { return full(stage) + T::kRings * T::kStages; }
  __device__ uint64_t* turn(int group) const {
    return barriers() + 2 * T::kRings * T::kStages + group;
  }
};

/// Loads `count` rows (columns of out for the right operand) from `first`, one stage deep from
/// `depth`, to `to`.
template <Major kMajor>
__device__ __forceinline__ void load_operand(const CUtensorMap& map, uint64_t* full, uint8_t* to,
                                             bool both, int first, int count, int depth,
                                             int expert) {
  if constexpr (kMajor == Major::K) {
    load_box(map, full, to, both, depth, first, expert);
  } else {
    for (int i = 0; i < count; i += 64) {
      load_box(map, full, to + i * kSwizzleBytes, both, first + i, depth, expert);
    }
  }
}

template <typename C>
__device__ __forceinline__ void load_stage(const CUtensorMap& left_map,
                                           const CUtensorMap& right_map,
                                           const Storage<Traits<C>>& smem, int stage, int rank,
                                           int row, int col, int depth, int expert) {
  using T = Traits<C>;
  uint64_t* full = smem.full(stage);
  Barrier::arrive_and_expect_tx(full, T::kStageBytes);
  // Each CTA brings half of the shared operand to both.
  constexpr int kLeftCount = T::kShareLeft ? C::kTileRows / kCluster : C::kTileRows;
  constexpr int kRightCount = T::kShareLeft ? C::kTileCols : C::kTileCols / kCluster;
  const int left_part = T::kShareLeft ? rank * kLeftCount : 0;
  const int right_part = T::kShareLeft ? 0 : rank * kRightCount;
  load_operand<C::kLeftMajor>(left_map, full, smem.left(stage) + left_part * kSwizzleBytes,
                              T::kShareLeft, row + left_part, kLeftCount, depth, 0);
  load_operand<C::kRightMajor>(right_map, full, smem.right(stage) + right_part * kSwizzleBytes,
                               !T::kShareLeft, col + right_part, kRightCount, depth, expert);
}

/// One warpgroup's part of the pipeline: waits for stages, multiplies, hands them back.
template <typename C>
struct Consumer {
  using T = Traits<C>;
  using Accumulators = float[T::kPieces][T::kAccumulators];

  Storage<T> smem;
  int lane;
  int first_row;      // of this warpgroup in the tile
  int threads;        // that read the same stages in this CTA
  uint32_t next = 0;  // stages used so far

  __device__ void wait_full(uint32_t use) const {
    Barrier::wait(smem.full(use % T::kStages), (use / T::kStages) & 1);
  }
  __device__ void release(uint32_t use) const {
    Barrier::arrive(smem.empty(use % T::kStages), lane, lane < kCluster);
  }
  __device__ uint32_t left(uint32_t use) const {
    return cute::cast_smem_ptr_to_uint(smem.left(use % T::kStages) + first_row * kSwizzleBytes);
  }
  __device__ uint32_t right(uint32_t use) const {
    return cute::cast_smem_ptr_to_uint(smem.right(use % T::kStages));
  }
  __device__ static int blocks_of(int depth) {
    return (depth + T::kBlockDepth - 1) / T::kBlockDepth;
  }

  /// Zeroes the contraction rows from `rest` on, the next group's (MN-major operands).
  __device__ void zero_tail(uint32_t use, int rest) const {
    const int rows = T::kStageBytes / kSwizzleBytes;
    for (int i = threadIdx.x % threads; i < rows * 8; i += threads) {
      if (i / 8 % 64 >= rest) {
        reinterpret_cast<uint4*>(smem.left(use % T::kStages))[i] = make_uint4(0, 0, 0, 0);
      }
    }
    cutlass::arch::fence_view_async_shared();
    // The loading warpgroup is not among the readers, so __syncthreads would wait for ever.
    cutlass::arch::NamedBarrier::sync(threads, kTailBarrier + threadIdx.x / threads);
  }
  static constexpr int kTailBarrier = 1;

  /// acc += the whole contraction, in the tensor cores' own accumulators. The last stage is still
  /// being multiplied on return; finish() waits for it. Past the end of the contraction both
  /// operands are 0, so stages are always multiplied whole.
  __device__ __forceinline__ void accumulate(Accumulators& acc, int depth) {
    const int blocks = blocks_of(depth);
    for (int block = 0; block < blocks; ++block, ++next) {
      wait_full(next);
      if constexpr (T::kZeroTail) {
        const int rest = depth - block * T::kBlockDepth;
        if (rest < T::kBlockDepth) zero_tail(next, rest);
      }
      pin_all(acc);
      cute::warpgroup_arrive();
      const uint64_t right_tile = describe<C::kRightMajor>(right(next));
#pragma unroll
      for (int k = 0; k < kStepsPerBlock; ++k) {
#pragma unroll
        for (int i = 0; i < T::kPieces; ++i) {
          const uint64_t piece =
              describe<C::kLeftMajor>(left(next) + i * T::kPieceStride * kSwizzleBytes);
          multiply_add<typename T::Instruction>(acc[i], piece + k * kNextStep<C::kLeftMajor>,
                                                right_tile + k * kNextStep<C::kRightMajor>);
        }
      }
      cute::warpgroup_commit_batch();
      pin_all(acc);
      cute::warpgroup_wait<1>();
      if (block > 0) release(next - 1);
    }
  }

  __device__ __forceinline__ void finish(Accumulators& acc, int depth) const {
    cute::warpgroup_wait<0>();
    pin_all(acc);
    if (depth > 0) release(next - 1);
  }

  /// acc += the whole contraction, promoted to float32 every C::kPromoteBlocks stages. While one
  /// warpgroup adds, the other keeps the tensor cores busy.
  __device__ __forceinline__ void accumulate_promoted(Accumulators& acc, int depth) {
    int blocks = blocks_of(depth);
#pragma unroll 1
    for (; blocks >= C::kPromoteBlocks; blocks -= C::kPromoteBlocks) {
      promote<C::kPromoteBlocks>(acc);
    }
#pragma unroll 1
    for (; blocks > 0; --blocks) promote<1>(acc);
  }

 private:
  __device__ static __forceinline__ void pin_all(Accumulators& acc) {
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) pin(acc[i]);
  }

  /// acc += the next kBlocks stages, piece by piece.
  template <int kBlocks>
  __device__ __forceinline__ void promote(Accumulators& acc) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) wait_full(next + b);
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
      float part[T::kAccumulators];
      pin(part);
      cute::warpgroup_arrive();
#pragma unroll
      for (int s = 0; s < kBlocks * kStepsPerBlock; ++s) {
        const uint32_t use = next + s / kStepsPerBlock;
        const int k = s % kStepsPerBlock;
        const uint32_t piece = left(use) + i * T::kPieceStride * kSwizzleBytes;
        // Zero, not cleared registers: ptxas would clear the next part early, beside this one.
        multiply_add<typename T::Instruction>(
            part, describe<C::kLeftMajor>(piece) + k * kNextStep<C::kLeftMajor>,
            describe<C::kRightMajor>(right(use)) + k * kNextStep<C::kRightMajor>,
            s == 0 ? ScaleOut::Zero : ScaleOut::One);
      }
      cute::warpgroup_commit_batch();
      pin(part);
      cute::warpgroup_wait<0>();
      pin(part);
      if (i == T::kPieces - 1) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) release(next + b);
      }
#pragma unroll
      for (int j = 0; j < T::kAccumulators; ++j) acc[i][j] += part[j];
    }
    next += kBlocks;
  }
};

/// Where a warp's part of a tile goes: 16 rows of each piece, from `row` of the group and `col` on.
struct Target {
  int64_t base;  // row of out (and of the row scales) where the group starts
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
      .base = C::kGrouped == Grouped::kDepth ? int64_t{work.group} * p.rows : work.first_row,
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
            there ? p.row_scale + t.base + row : p.row_scale, there);
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

__device__ __forceinline__ void store_pair(float* out, float x, float y, int cols,
                                           bool vector_store) {
  if (vector_store && cols >= 2) {
    __stcs(reinterpret_cast<float2*>(out), make_float2(x, y));
  } else {
    if (cols > 0) out[0] = x;
    if (cols > 1) out[1] = y;
  }
}

/// Scales and stores a warp's 16 rows of one piece. `row`: of the warp's first in the group.
template <typename C>
__device__ __forceinline__ void store_rows(const Problem& p, const Target& t, int row,
                                           const float (&acc)[Traits<C>::kAccumulators],
                                           const float* row_scales, const float* col_scales,
                                           uint8_t* patch, int lane) {
  constexpr bool kScaled = C::kElement == GemmElement::kE4M3;
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
        v[0] *= row_scale[0] * s.x;
        v[1] *= row_scale[0] * s.y;
        v[2] *= row_scale[1] * s.x;
        v[3] *= row_scale[1] * s.y;
      }
      if constexpr (C::kOutput == GemmOutput::kFloat32) {
        const int cols = t.cols - t.col - c;
        float* to = static_cast<float*>(p.out) + first + (c0 + i * 8);
        if (lane / 4 < rows) store_pair(to, v[0], v[1], cols, p.vector_store);
        if (lane / 4 + 8 < rows) store_pair(to + 8 * p.out_pitch, v[2], v[3], cols, p.vector_store);
      } else {
        packed[i][0] = pack(v[0], v[1]);
        packed[i][1] = pack(v[2], v[3]);
      }
    }
    if constexpr (C::kOutput == GemmOutput::kBFloat16) {
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

// ---- Kernel -------------------------------------------------------------------------------------

/// The first super-tile of a ring; the next ones follow at a fixed stride.
template <typename T>
__device__ __forceinline__ int first_tile(int ring) {
  return blockIdx.x / kCluster * T::kRings + ring;
}

/// A loading warp: fills its ring's stages for every tile in the order of the walk.
template <typename C>
__device__ __forceinline__ void produce(const CUtensorMap& left_map, const CUtensorMap& right_map,
                                        const Problem& p, const Storage<Traits<C>>& smem, int rank,
                                        int lane) {
  using T = Traits<C>;
  typename T::Walk walk(p, lane);
  Work work;
  uint32_t next = 0;
  const int stride = gridDim.x / kCluster * T::kRings;
  for (int tile = first_tile<T>(smem.ring); walk.find(tile, work); tile += stride) {
    if (lane == 0) {
      const int row = work.first_row + work.row + (T::kShareLeft ? 0 : rank * C::kTileRows);
      const int col = work.col + (T::kShareLeft ? rank * C::kTileCols : 0);
      const int expert = C::kGrouped == Grouped::kRows ? work.group : 0;
      for (int depth = 0; depth < work.depth; depth += T::kBlockDepth, ++next) {
        const int stage = next % T::kStages;
        Barrier::wait(smem.empty(stage), ((next / T::kStages) & 1) ^ 1);
        load_stage<C>(left_map, right_map, smem, stage, rank, row, col, work.first_depth + depth,
                      expert);
      }
    }
    __syncwarp();
  }
}

/// A multiplying warpgroup: its tiles in the order of the walk, then their stores.
template <typename C>
__device__ __forceinline__ void consume(const Problem& p, const Storage<Traits<C>>& smem, int rank,
                                        int warp, int lane) {
  using T = Traits<C>;
  const int group = warp / 4;
  Consumer<C> consumer{smem, lane, T::kCooperative ? group * 64 : 0, T::kCooperative ? 256 : 128};
  typename T::Walk walk(p, lane);
  Work work;
  uint32_t count = 0;  // super-tiles seen
  const int stride = gridDim.x / kCluster * T::kRings;
  for (int tile = first_tile<T>(smem.ring); walk.find(tile, work); tile += stride, ++count) {
    if (T::kPingpong && count % kConsumerGroups != static_cast<uint32_t>(group)) {
      consumer.next += Consumer<C>::blocks_of(work.depth);
      continue;
    }
    if constexpr (C::kElement == GemmElement::kE4M3) {
      fetch_scales<C>(p, target_of<C>(p, work, rank, warp), smem.scales(warp), lane);
    }
    typename Consumer<C>::Accumulators acc;
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
#pragma unroll
      for (float& x : acc[i]) x = 0.0f;
    }
    // Pingpong: without turns the second warpgroup would wait for stages a whole ring ahead. Twin:
    // the second warpgroup starts late, once, so that the two do not store at the same time.
    const uint32_t round = count / kConsumerGroups;
    if constexpr (T::kPingpong) Barrier::wait(smem.turn(group), (round & 1) ^ (group == 0));
    if (T::kRings > 1 && group == 1 && count == 0) Barrier::wait(smem.turn(group), 0);
    if constexpr (C::kPromoteBlocks > 0) {
      consumer.accumulate_promoted(acc, work.depth);
    } else {
      consumer.accumulate(acc, work.depth);
    }
    if (T::kPingpong || (T::kRings > 1 && group == 0 && count == 0)) {
      Barrier::arrive(smem.turn(group ^ 1), rank, lane == 0);
    }
    if constexpr (C::kPromoteBlocks == 0) consumer.finish(acc, work.depth);
    cute::cp_async_wait<0>();
    __syncwarp();
    const Target target = target_of<C>(p, work, rank, warp);
    const float* scales = smem.scales(warp);
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
      const int row = target.row + i * T::kPieceStride;
      if (row < target.rows) {
        store_rows<C>(p, target, row, acc[i], scales + C::kTileCols + i * kWarpRows, scales,
                      smem.patch(warp), lane);
      }
    }
    __syncwarp();
  }
}

template <typename C>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    grouped_gemm_kernel(const __grid_constant__ CUtensorMap left_map,
                        const __grid_constant__ CUtensorMap right_map,
                        const __grid_constant__ Problem problem) {
  using T = Traits<C>;
  extern __shared__ __align__(1024)
      uint8_t shared_memory[];  // the swizzle repeats every 1024 bytes
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  const int rank = static_cast<int>(cute::block_rank_in_cluster());
  const bool loads = warp >= kConsumerWarps;
  const int ring = T::kRings == 1 ? 0 : loads ? warp - kConsumerWarps : warp / 4;
  const Storage<T> smem{shared_memory, ring};
  if (threadIdx.x == 0) {
    const Storage<T> first{shared_memory, 0};
    for (int s = 0; s < T::kRings * T::kStages; ++s) {
      Barrier::init(first.full(s), 1);
      Barrier::init(first.empty(s), T::kReaders);
    }
    for (int g = 0; g < kConsumerGroups; ++g) Barrier::init(smem.turn(g), 4);
    cutlass::arch::fence_barrier_init();
  }
  cute::cluster_sync();
  if (loads) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (warp < kConsumerWarps + T::kRings) {
      produce<C>(left_map, right_map, problem, smem, rank, lane);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<C>(problem, smem, rank, warp, lane);
  }
  // A CTA must not leave while the other still signals its barriers.
  cute::cluster_sync();
}

// ---- Launch -------------------------------------------------------------------------------------

/// The sizes of a product in the kernel's terms.
inline Problem problem_of(const GroupedGemmArgs& a) {
  const bool by_depth = a.kind == GroupedGemmKind::kGradWeight;
  const int64_t rows = by_depth ? a.N : a.M;
  const int64_t cols = a.kind == GroupedGemmKind::kOut ? a.N : a.K;
  const int64_t depth = by_depth ? a.M : a.kind == GroupedGemmKind::kOut ? a.K : a.N;
  const int bytes = a.output == GemmOutput::kBFloat16 ? 2 : 4;
  const int store = a.output == GemmOutput::kBFloat16 ? 16 : 8;
  Problem p;
  p.rows = static_cast<int>(rows);
  p.cols = static_cast<int>(cols);
  p.depth = static_cast<int>(depth);
  p.groups = static_cast<int>(a.E);
  p.offs = a.offs;
  p.padded_starts = a.element == GemmElement::kE4M3 ? a.padded_starts : nullptr;
  p.row_scale = a.row_scale;
  p.col_scale = a.col_scale;
  p.out = a.out;
  p.out_pitch = a.out_pitch;
  p.vector_store =
      reinterpret_cast<uintptr_t>(a.out) % store == 0 && a.out_pitch * bytes % store == 0;
  return p;
}

/// How far the operands reach in the contraction.
template <typename C>
int64_t contraction_extent(const GroupedGemmArgs& a, const Problem& p) {
  const bool padded = C::kGrouped == Grouped::kDepth && C::kElement == GemmElement::kE4M3;
  return padded ? a.padded_tokens : int64_t{p.depth};
}

/// Boxes of the operands: rows of out (or columns) x one stage of contraction.
template <typename C>
const char* encode_maps(const GroupedGemmArgs& a, const Problem& p, CUtensorMap& left,
                        CUtensorMap& right) {
  using T = Traits<C>;
  const bool by_depth = C::kGrouped == Grouped::kDepth;
  const int64_t depth = contraction_extent<C>(a, p);
  const int left_box = T::kShareLeft ? C::kTileRows / kCluster : C::kTileRows;
  const int right_box = T::kShareLeft ? C::kTileCols : C::kTileCols / kCluster;
  const bool left_k = C::kLeftMajor == Major::K;
  const bool right_k = C::kRightMajor == Major::K;
  const bool done = encode_tensor_map(left, {.data = a.left,
                                             .element_bytes = T::kElementBytes,
                                             .inner = left_k ? depth : p.rows,
                                             .middle = left_k ? p.rows : depth,
                                             .outer = 1,
                                             .pitch = a.left_pitch,
                                             .box_middle = left_k ? left_box : T::kBlockDepth}) &&
                    encode_tensor_map(right, {.data = a.right,
                                              .element_bytes = T::kElementBytes,
                                              .inner = right_k ? depth : p.cols,
                                              .middle = right_k ? p.cols : depth,
                                              .outer = by_depth ? 1 : a.E,
                                              .pitch = a.right_pitch,
                                              .box_middle = right_k ? right_box : T::kBlockDepth});
  return done ? nullptr : "cuTensorMapEncodeTiled";
}

/// Writes zeros: what a product without contraction gives.
inline LaunchStatus zero_out(const GroupedGemmArgs& a, const Problem& p) {
  const size_t bytes = a.output == GemmOutput::kBFloat16 ? 2 : 4;
  const int64_t rows = a.kind == GroupedGemmKind::kGradWeight ? a.E * p.rows : p.rows;
  const cudaError_t error = cudaMemset2DAsync(a.out, a.out_pitch * bytes, 0, p.cols * bytes,
                                              static_cast<size_t>(rows), a.stream);
  return {error, error == cudaSuccess ? nullptr : "cudaMemset2DAsync"};
}

template <typename C>
LaunchStatus launch(const GroupedGemmArgs& a) {
  using T = Traits<C>;
  const Problem p = problem_of(a);
  if (p.rows == 0 || p.cols == 0 || (C::kGrouped == Grouped::kDepth && p.groups == 0)) return {};
  if (contraction_extent<C>(a, p) == 0 || p.groups == 0) return zero_out(a, p);
  CUtensorMap left, right;
  if (const char* failed = encode_maps<C>(a, p, left, right))
    return {cudaErrorInvalidValue, failed};

  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return {error, "cudaGetDevice"};
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return {error, "cudaDeviceGetAttribute"};
  auto* kernel = grouped_gemm_kernel<C>;
  error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  if (error != cudaSuccess) return {error, "cudaFuncSetAttribute"};

  // Each group, and the rows of none, can end in one partial row of super-tiles.
  const int64_t col_tiles = (p.cols + T::kSuperCols - 1) / T::kSuperCols;
  const int64_t row_tiles = (p.rows + T::kSuperRows - 1) / T::kSuperRows;
  const int64_t most =
      col_tiles * (C::kGrouped == Grouped::kRows ? row_tiles + p.groups + 1 : row_tiles * p.groups);
  const auto clusters = static_cast<unsigned>(std::min<int64_t>(most, processors / kCluster));
  kernel<<<clusters * kCluster, kThreads, T::kSharedBytes, a.stream>>>(left, right, p);
  error = cudaGetLastError();
  return {error, error == cudaSuccess ? nullptr : "the kernel launch"};
}

/// nullptr when the template can compute these arguments, else why not.
inline const char* refuses_any(const GroupedGemmArgs& a) {
  constexpr int64_t kMax = INT32_MAX;
  const int64_t bytes = a.element == GemmElement::kE4M3 ? 1 : 2;
  if (a.M > kMax || a.N > kMax || a.K > kMax || a.E >= kMax) return "a size does not fit 32 bits";
  if (a.left_pitch * bytes % 16 != 0 || a.right_pitch * bytes % 16 != 0) {
    return "an operand's pitch is not a multiple of 16 bytes";
  }
  if (reinterpret_cast<uintptr_t>(a.left) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(a.right) % 16 != 0) {
    return "an operand is not 16-byte aligned";
  }
  if (a.element == GemmElement::kE4M3) {
    if (a.row_scale == nullptr || a.col_scale == nullptr) return "codes without scales";
    if (a.kind == GroupedGemmKind::kGradWeight && a.padded_starts == nullptr) {
      return "transposed copies without the groups' starts";
    }
  }
  return nullptr;
}

}  // namespace moe8::cuda::sm90
