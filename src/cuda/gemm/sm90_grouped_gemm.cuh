// SPDX-License-Identifier: BSD-3-Clause
// The grouped matrix product for sm_90a: one kernel template for out, grad_input and grad_weight,
// FP8 and bf16. Which instances exist and when each is taken: grouped_gemm.cpp.
//
// Maths   out[r, c] = row_scale[r] col_scale[c] * sum_d left[r, d] right[c, d] for each group, all
//         by the tensor cores; with promotion, float32 sums of short tensor-core sums.
// Tile    a cluster of two CTAs computes two tiles side by side and shares the operand common to
//         them; 128 bytes of contraction a stage, as many stages as shared memory holds.
//         Cooperative: both multiplying warpgroups share a tile. Pingpong: each has its own tile,
//         one multiplies while the other stores.
// Floor   2 rows cols depth flop at what the power limit leaves of the tensor cores; for few rows a
//         group, one read of all operands and one write of out.
#pragma once

#include <algorithm>
#include <atomic>

#include "cuda/gemm/sm90_epilogue.cuh"
#include "cuda/gemm/sm90_gemm_config.cuh"
#include "cuda/gemm/sm90_ptx.cuh"
#include "cuda/gemm/sm90_tensor_map.h"
#include "cuda/gemm/sm90_tile_walk.cuh"
#include "cuda/launch.cuh"

namespace moe8::cuda::sm90 {

// ---- Device helpers -----------------------------------------------------------------------------

/// Where things lie in shared memory. full[s]: stage s has arrived. empty[s]: both CTAs have read
/// it. turn[g]: warpgroup g may multiply.
template <typename T>
struct Storage {
  uint8_t* base;

  __device__ uint8_t* left(int stage) const { return base + stage * T::kStageBytes; }
  __device__ uint8_t* right(int stage) const { return left(stage) + T::kLeftBytes; }
  __device__ uint64_t* barriers() const {
    return reinterpret_cast<uint64_t*>(base + T::kRingBytes);
  }
  __device__ uint8_t* patch(int warp) const {
    return base + T::kRingBytes + kBarrierBytes + warp * kPatchBytes;
  }
  __device__ float* scales(int warp) const {
    return reinterpret_cast<float*>(patch(kConsumerWarps)) + warp * T::kScales;
  }
  __device__ uint64_t* full(int stage) const { return barriers() + stage; }
  __device__ uint64_t* empty(int stage) const { return full(stage) + T::kStages; }
  __device__ uint64_t* turn(int group) const { return barriers() + 2 * T::kStages + group; }
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

// ---- Kernel -------------------------------------------------------------------------------------

/// The loading warp: fills the stages for every tile in the order of the walk.
template <typename C>
__device__ __forceinline__ void produce(const CUtensorMap& left_map, const CUtensorMap& right_map,
                                        const Problem& p, const Storage<Traits<C>>& smem, int rank,
                                        int lane) {
  using T = Traits<C>;
  typename T::Walk walk(p, lane);
  Work work;
  uint32_t next = 0;
  const int stride = gridDim.x / kCluster;
  for (int tile = blockIdx.x / kCluster; walk.find(tile, work); tile += stride) {
    if (lane == 0) {
      const int row = work.first_row + work.row + (T::kShareLeft ? 0 : rank * C::kTileRows);
      const int col = work.col + (T::kShareLeft ? rank * C::kTileCols : 0);
      const int expert = C::kGrouped == Grouped::ROWS ? work.group : 0;
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
  const int stride = gridDim.x / kCluster;
  for (int tile = blockIdx.x / kCluster; walk.find(tile, work); tile += stride, ++count) {
    if (T::kPingpong && count % kConsumerGroups != static_cast<uint32_t>(group)) {
      consumer.next += Consumer<C>::blocks_of(work.depth);
      continue;
    }
    if constexpr (is_fp8(C::kElement)) {
      fetch_scales<C>(p, target_of<C>(p, work, rank, warp), smem.scales(warp), lane);
    }
    typename Consumer<C>::Accumulators acc;
#pragma unroll
    for (int i = 0; i < T::kPieces; ++i) {
#pragma unroll
      for (float& x : acc[i]) x = 0.0f;
    }
    // Without turns the second warpgroup would wait for stages a whole ring ahead.
    const uint32_t round = count / kConsumerGroups;
    if constexpr (T::kPingpong) Barrier::wait(smem.turn(group), (round & 1) ^ (group == 0));
    if constexpr (C::kPromoteBlocks > 0) {
      consumer.accumulate_promoted(acc, work.depth);
    } else {
      consumer.accumulate(acc, work.depth);
    }
    if constexpr (T::kPingpong) Barrier::arrive(smem.turn(group ^ 1), rank, lane == 0);
    if constexpr (C::kPromoteBlocks == 0) consumer.finish(acc, work.depth);
    cute::cp_async_wait<0>();
    __syncwarp();
    if (p.operands_are_ready && count < kConsumerGroups) follow_stream();
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
  const Storage<T> smem{shared_memory};
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      Barrier::init(smem.full(s), 1);
      Barrier::init(smem.empty(s), T::kReaders);
    }
    for (int g = 0; g < kConsumerGroups; ++g) Barrier::init(smem.turn(g), 4);
    cutlass::arch::fence_barrier_init();
  }
  cute::cluster_sync();
  if (!problem.operands_are_ready) follow_stream();  // else before the first store
  if (loads) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (warp == kConsumerWarps) produce<C>(left_map, right_map, problem, smem, rank, lane);
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<C>(problem, smem, rank, warp, lane);
  }
  if (problem.operands_are_ready) wait_for_stream();  // also where there was no tile
  // A CTA must not leave while the other still signals its barriers.
  cute::cluster_sync();
}

// ---- Launch -------------------------------------------------------------------------------------

/// The sizes of a product in the kernel's terms.
inline Problem problem_of(const GroupedGemmArgs& a) {
  const bool by_depth = a.kind == Gemm::GRAD_WEIGHT;
  const int64_t rows = by_depth ? a.N : a.M;
  const int64_t cols = a.kind == Gemm::OUT ? a.N : a.K;
  const int64_t depth = by_depth ? a.M : a.kind == Gemm::OUT ? a.K : a.N;
  const int bytes = a.output == FloatType::BF16 ? 2 : 4;
  const int store = a.output == FloatType::BF16 ? 16 : 8;
  Problem p;
  p.rows = static_cast<int>(rows);
  p.cols = static_cast<int>(cols);
  p.depth = static_cast<int>(depth);
  p.groups = static_cast<int>(a.E);
  p.offs = a.offs;
  p.padded_starts = is_fp8(a.element) ? a.padded_starts : nullptr;
  p.row_scale = a.row_scale;
  p.col_scale = a.col_scale;
  p.out = a.out;
  p.out_pitch = a.out_pitch;
  p.slices = by_depth ? std::max(a.slices, 1) : 1;
  p.vector_store =
      reinterpret_cast<uintptr_t>(a.out) % store == 0 && a.out_pitch * bytes % store == 0;
  p.operands_are_ready = a.operands_are_ready;
  return p;
}

/// How far the operands reach in the contraction.
template <typename C>
int64_t contraction_extent(const GroupedGemmArgs& a, const Problem& p) {
  const bool padded = C::kGrouped == Grouped::DEPTH && is_fp8(C::kElement);
  return padded ? a.padded_tokens : int64_t{p.depth};
}

/// Boxes of the operands: rows of out (or columns) x one stage of contraction.
template <typename C>
const char* encode_maps(const GroupedGemmArgs& a, const Problem& p, CUtensorMap& left,
                        CUtensorMap& right) {
  using T = Traits<C>;
  const bool by_depth = C::kGrouped == Grouped::DEPTH;
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

/// Writes zeros, or adds none: what a product without contraction gives.
inline LaunchStatus zero_out(const GroupedGemmArgs& a, const Problem& p) {
  if (a.adds) return {};
  const size_t bytes = a.output == FloatType::BF16 ? 2 : 4;
  const int64_t rows = a.kind == Gemm::GRAD_WEIGHT ? a.E * p.slices * p.rows : p.rows;
  const cudaError_t error = cudaMemset2DAsync(a.out, a.out_pitch * bytes, 0, p.cols * bytes,
                                              static_cast<size_t>(rows), a.stream);
  return {error, error == cudaSuccess ? nullptr : "cudaMemset2DAsync"};
}

template <typename C>
LaunchStatus launch(const GroupedGemmArgs& a) {
  using T = Traits<C>;
  const Problem p = problem_of(a);
  if (p.rows == 0 || p.cols == 0 || (C::kGrouped == Grouped::DEPTH && p.groups == 0)) return {};
  if (contraction_extent<C>(a, p) == 0 || p.groups == 0) return zero_out(a, p);
  CUtensorMap left, right;
  if (const char* failed = encode_maps<C>(a, p, left, right)) return refused(failed);

  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return {error, "cudaGetDevice"};
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return {error, "cudaDeviceGetAttribute"};
  auto* kernel = grouped_gemm_kernel<C>;
  static std::atomic<uint64_t> prepared{0};  // a bit for each device; those past 63 every time
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((prepared.load(std::memory_order_relaxed) & bit) == 0) {
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
    if (error != cudaSuccess) return {error, "cudaFuncSetAttribute"};
    prepared.fetch_or(bit, std::memory_order_relaxed);
  }

  // Each group, and the rows of none, can end in one partial row of super-tiles.
  const int64_t col_tiles = (p.cols + T::kSuperCols - 1) / T::kSuperCols;
  const int64_t row_tiles = (p.rows + T::kSuperRows - 1) / T::kSuperRows;
  const int64_t most = col_tiles * (C::kGrouped == Grouped::ROWS ? row_tiles + p.groups + 1
                                                                 : row_tiles * p.groups * p.slices);
  const auto clusters = static_cast<unsigned>(std::min<int64_t>(most, processors / kCluster));
  return launch_early(kernel, clusters * kCluster, kThreads, T::kSharedBytes, a.stream, left, right,
                      p);
}

/// nullptr when the template can compute these arguments, else why not.
inline const char* refuses_any(const GroupedGemmArgs& a) {
  constexpr int64_t kMax = INT32_MAX;
  const int64_t bytes = is_fp8(a.element) ? 1 : 2;
  if (a.M > kMax || a.N > kMax || a.K > kMax || a.E >= kMax) return "a size does not fit 32 bits";
  if (a.left_pitch * bytes % 16 != 0 || a.right_pitch * bytes % 16 != 0) {
    return "an operand's pitch is not a multiple of 16 bytes";
  }
  if (reinterpret_cast<uintptr_t>(a.left) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(a.right) % 16 != 0) {
    return "an operand is not 16-byte aligned";
  }
  if (a.adds && (a.kind != Gemm::GRAD_WEIGHT || a.output != FloatType::F32)) {
    return "only float32 weight gradients are added to what is there";
  }
  if (is_fp8(a.element)) {
    // Without tokens or without groups there is no scale to point to.
    const bool by_depth = a.kind == Gemm::GRAD_WEIGHT;
    const int64_t row_scales = by_depth ? a.E * a.N : a.M;
    const int64_t col_scales = a.E * (a.kind == Gemm::OUT ? a.N : a.K);
    if ((row_scales > 0 && a.row_scale == nullptr) || (col_scales > 0 && a.col_scale == nullptr)) {
      return "codes without scales";
    }
    if (by_depth && a.E > 0 && a.padded_starts == nullptr) {
      return "transposed copies without the groups' starts";
    }
  }
  return nullptr;
}

}  // namespace moe8::cuda::sm90
