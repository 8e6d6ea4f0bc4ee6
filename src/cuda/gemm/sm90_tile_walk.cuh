// SPDX-License-Identifier: BSD-3-Clause
// Which output tile a cluster computes next, found on the device from offs. Every warp that needs
// to know walks by itself, so no shared memory and no limit on the number of groups.
#pragma once

#include <cstdint>

namespace moe8::cuda::sm90 {

/// What the groups divide: the rows of the output (OUT, GRAD_INPUT) or the contraction
/// (GRAD_WEIGHT).
enum class Grouped { ROWS, DEPTH };

/// The product as the kernel sees it: out (rows, cols) = left (rows, depth) x right (cols,
/// depth)^T.
struct Problem {
  int rows;   // ROWS: M of all groups
  int cols;   // of the output
  int depth;  // contraction; DEPTH: M of all groups
  int groups;
  const int32_t* offs;
  const int32_t* padded_starts;  // DEPTH; nullptr: groups lie at offs
  const float* row_scale;
  const float* col_scale;
  void* out;
  int64_t out_pitch;
  int slices;         // DEPTH: of each group's contraction; out has the parts of each, in turn
  bool vector_store;  // rows of out are aligned for the widest stores
  bool operands_are_ready;  // GroupedGemmArgs
};

/// A super-tile, the two tiles of a cluster.
struct Work {
  int group;        // == Problem::groups: rows of no group, to be zeroed
  int first_row;    // ROWS: first row of the group in left and out
  int rows;         // of the group (DEPTH: of the output)
  int row, col;     // of the super-tile, relative to first_row and to 0
  int depth;        // length of the contraction
  int first_depth;  // DEPTH: where it starts in the contraction
  int slice;        // DEPTH: of the group's contraction
};

/// Consecutive super-tiles walk down kBandRows rows, then move to the next column: what the
/// clusters work on at a time is a square patch whose operands stay in L2.
inline constexpr int kBandRows = 2048;

/// Tokens of a slice are a multiple of it: whole stages, and whole sums of FP8 products.
inline constexpr int kSliceTokens = 256;

template <Grouped kGrouped, int kSuperRows, int kSuperCols>
class TileWalk {
 public:
  __device__ __forceinline__ TileWalk(const Problem& problem, int lane)
      : problem_(problem), lane_(lane), col_tiles_((problem.cols + kSuperCols - 1) / kSuperCols) {
    if constexpr (kGrouped == Grouped::ROWS) load_window();
  }

  /// Finds super-tile `index`; indices must not decrease. False past the last one. All lanes call.
  __device__ __forceinline__ bool find(int index, Work& work) {
    return kGrouped == Grouped::ROWS ? find_rows(index, work) : find_depth(index, work);
  }

 private:
  __device__ __forceinline__ int end_of(int group) const {
    return min(max(problem_.offs[group], 0), max_end());
  }
  __device__ __forceinline__ int max_end() const {
    return kGrouped == Grouped::ROWS ? problem_.rows : problem_.depth;
  }

  // Lane i takes group window_ + i; the group past the last one is the rows of no group.
  __device__ __forceinline__ void load_window() {
    const int group = window_ + lane_;
    begin_ = group > 0 && group <= problem_.groups ? end_of(group - 1) : 0;
    int end = begin_;
    if (group < problem_.groups) end = end_of(group);
    if (group == problem_.groups) end = problem_.rows;
    size_ = max(end - begin_, 0);
    tiles_through_ = (size_ + kSuperRows - 1) / kSuperRows * col_tiles_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(~0u, tiles_through_, step);
      if (lane_ >= step) tiles_through_ += below;
    }
  }

  __device__ __forceinline__ bool find_rows(int index, Work& work) {
    for (int in_window = __shfl_sync(~0u, tiles_through_, 31); index >= tiles_before_ + in_window;
         in_window = __shfl_sync(~0u, tiles_through_, 31)) {
      tiles_before_ += in_window;
      window_ += 32;
      if (window_ > problem_.groups) return false;
      load_window();
    }
    index -= tiles_before_;
    const int owner = __popc(__ballot_sync(~0u, tiles_through_ <= index));
    const int before = __shfl_sync(~0u, tiles_through_, max(owner - 1, 0));
    work.group = window_ + owner;
    work.first_row = __shfl_sync(~0u, begin_, owner);
    work.rows = __shfl_sync(~0u, size_, owner);
    work.depth = work.group < problem_.groups ? problem_.depth : 0;
    work.first_depth = 0;
    work.slice = 0;
    place(index - (owner > 0 ? before : 0), work);
    return true;
  }

  __device__ __forceinline__ bool find_depth(int index, Work& work) {
    const int per_group = (problem_.rows + kSuperRows - 1) / kSuperRows * col_tiles_;
    const int part = index / per_group;
    work.group = part / problem_.slices;
    if (work.group >= problem_.groups) return false;
    work.slice = part % problem_.slices;
    const int begin = work.group > 0 ? end_of(work.group - 1) : 0;
    const int depth = max(end_of(work.group) - begin, 0);
    const int unit = kSliceTokens * problem_.slices;
    const int in_slice = (depth + unit - 1) / unit * kSliceTokens;
    const int before = min(work.slice * in_slice, depth);
    work.first_row = 0;
    work.rows = problem_.rows;
    work.depth = min(in_slice, depth - before);
    work.first_depth =
        (problem_.padded_starts ? problem_.padded_starts[work.group] : begin) + before;
    place(index - part * per_group, work);
    return true;
  }

  __device__ __forceinline__ void place(int index, Work& work) const {
    constexpr int kBand = kBandRows / kSuperRows;
    const int row_tiles = (work.rows + kSuperRows - 1) / kSuperRows;
    const int band = index / (kBand * col_tiles_);
    const int height = min(kBand, row_tiles - band * kBand);
    const int in_band = index - band * kBand * col_tiles_;
    work.row = (band * kBand + in_band % height) * kSuperRows;
    work.col = in_band / height * kSuperCols;
  }

  const Problem& problem_;
  const int lane_;
  const int col_tiles_;
  int window_ = 0;         // first group of the 32 that the lanes hold
  int tiles_before_ = 0;   // super-tiles of the groups before the window
  int begin_ = 0;          // first row of this lane's group
  int size_ = 0;           // its rows
  int tiles_through_ = 0;  // super-tiles of the window up to and including this lane's group
};

}  // namespace moe8::cuda::sm90
