// SPDX-License-Identifier: BSD-3-Clause
// What the gated activation's kernels for MX values share: a warp's tile of 32 rows of a group and
// 64 pairs of each. Their blocks of 32, along rows and along columns, lie within it. The kernels are
// in swiglu_mx_forward.cu and swiglu_mx_backward.cu.
#pragma once

#include <type_traits>

#include "cuda/experts/mx_tile.cuh"
#include "cuda/experts/swiglu.cuh"

namespace moe8::cuda {

template <typename Args>
struct SwigluMxParams {
  Args args;
  GateNumbers gate;
  MxTiles tiles;

  explicit SwigluMxParams(const Args& a)
      : args(a), gate(GateNumbers::of(a.activation)), tiles(MxTiles::of(a.groups, a.columns)) {}
  int64_t thread_blocks() const { return ceil_div(int64_t{tiles.count}, int64_t{kMxWarps}); }
};

// ---- device helpers
/// The warp's tile; without rows past the last one.
template <typename Args>
__device__ MxPlace place_of(const SwigluMxParams<Args>& p) {
  const auto warp = static_cast<int32_t>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  const int32_t block = p.tiles.by_across.quotient(warp);
  const bool is_there = warp < p.tiles.count;
  return {is_there ? p.tiles.blocks.at(block) : RowChunk{0, 0, kNoGroup, 0},
          warp - block * p.tiles.across, p.tiles.columns};
}

/// Where the two packets of a lane's eight pairs lie in a hidden row.
struct PairColumns {
  int32_t first, second;
};

template <typename Kind>
__device__ PairColumns pair_columns(const MxPlace& at, int32_t columns) {
  if (Kind::kLayout == GateLayout::HALVES) return {at.column, at.column + columns};
  return {2 * at.column, 2 * at.column + 8};
}

/// The score of the block's row whose number is the lane's.
__device__ inline float score_of_lane(const SwigluSource& a, const MxPlace& at) {
  const auto row = static_cast<int32_t>(threadIdx.x % 32);
  if (a.scores == nullptr || row >= at.block.rows || at.block.group == kNoGroup) return 1.0f;
  return a.scores[a.slot_of_row[at.block.row + row]];
}

template <typename Kind>
__device__ PairsOf<Packet32> biases_of(const SwigluSource& a, const MxPlace& at,
                                       const PairColumns& in) {
  if (at.read == 0) return {};
  return load_biases<Kind>(a, at.block.group, in.first, in.second);
}

/// The instance of a kernel for these arguments: of(std::type_identity<Kind>()).
template <typename Of>
auto swiglu_mx_instance(const SwigluSource& a, Of of) {
  using enum GateLayout;
  const bool plain = is_plain(a);
  if (a.activation.layout == HALVES) {
    return plain ? of(std::type_identity<SwigluKind<1, HALVES, true>>())
                 : of(std::type_identity<SwigluKind<1, HALVES, false>>());
  }
  return plain ? of(std::type_identity<SwigluKind<1, INTERLEAVED, true>>())
               : of(std::type_identity<SwigluKind<1, INTERLEAVED, false>>());
}

/// Why no kernel takes hidden rows; nullptr: one does.
inline const char* swiglu_mx_refusal(const SwigluSource& a) {
  if (const char* why = swiglu_refusal(a)) return why;
  return refusal_of(a.groups, a.columns);
}

}  // namespace moe8::cuda
