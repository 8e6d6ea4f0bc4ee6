// SPDX-License-Identifier: BSD-3-Clause
// What tells one instance of sm90_grouped_gemm.cuh from another, and what follows from it: tiles,
// stages, shares of shared memory and registers.
#pragma once

#include "cuda/gemm/sm90_ptx.cuh"
#include "cuda/gemm/sm90_tile_walk.cuh"

namespace moe8::cuda::sm90 {

enum class Schedule { COOPERATIVE, PINGPONG };
enum class Shared { LEFT, RIGHT };  // the operand that both CTAs of a cluster use

/// One instance of the kernel. kPromoteBlocks_: stages between promotions to float32; 0: accumulate
/// in the tensor cores throughout. (A type, because nvcc 13.0 cannot pass structs as arguments.)
template <GemmElement kElement_, FloatType kOutput_, Grouped kGrouped_, Major kLeft, Major kRight,
          int kRows, int kCols, Schedule kSchedule_, Shared kShared_, int kPromoteBlocks_>
struct Config {
  static constexpr GemmElement kElement = kElement_;
  static constexpr FloatType kOutput = kOutput_;
  static constexpr Grouped kGrouped = kGrouped_;
  static constexpr Major kLeftMajor = kLeft;
  static constexpr Major kRightMajor = kRight;
  static constexpr int kTileRows = kRows;
  static constexpr int kTileCols = kCols;
  static constexpr Schedule kSchedule = kSchedule_;
  static constexpr Shared kShared = kShared_;
  static constexpr int kPromoteBlocks = kPromoteBlocks_;
  static constexpr bool kAdds = false;  // to what is there, instead of storing
};

/// The same instance, adding. Of float32 output.
template <typename C>
struct Adding : C {
  static constexpr bool kAdds = true;
  static_assert(C::kOutput == FloatType::F32 && C::kGrouped == Grouped::DEPTH);
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
  static constexpr bool kPingpong = C::kSchedule == Schedule::PINGPONG;
  static constexpr bool kCooperative = C::kSchedule == Schedule::COOPERATIVE;
  static constexpr bool kShareLeft = C::kShared == Shared::LEFT;
  static constexpr int kElementBytes = is_fp8(C::kElement) ? 1 : 2;
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
  static constexpr int kStages = (kSharedMemory - kOtherBytes) / kStageBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kRingBytes + kOtherBytes;
  /// Consumer warps that read a stage, in both CTAs.
  static constexpr int kReaders = kCluster * (kCooperative ? kConsumerWarps : 4);
  /// bf16 groups of tokens are not padded: what follows a group is zeroed in shared memory.
  static constexpr bool kZeroTail =
      C::kGrouped == Grouped::DEPTH && C::kElement == GemmElement::BF16;

  using Instruction = Wgmma<C::kElement, C::kTileCols, C::kLeftMajor, C::kRightMajor>;
  using Walk = TileWalk<C::kGrouped, kSuperRows, kSuperCols>;

  static_assert(C::kTileRows % (64 * (kCooperative ? kConsumerGroups : 1)) == 0);
  static_assert(kStages >= 3 && (2 * kStages + kConsumerGroups) * 8 <= kBarrierBytes);
  static_assert(!kZeroTail || C::kPromoteBlocks == 0);
};

}  // namespace moe8::cuda::sm90
