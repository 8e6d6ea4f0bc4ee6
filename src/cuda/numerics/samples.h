// SPDX-License-Identifier: BSD-3-Clause
// Samples of a product in few launches, all of it on the device: parts of matrices, largest
// magnitudes, and elements of a weight's gradient in float64. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "kernels/picks.h"

namespace moe8::cuda {

inline constexpr int kPieceAxes = 3;
inline constexpr int kMaxPieces = 8;      // of a launch
inline constexpr int kMaxRuns = 64;       // of all of its pieces
inline constexpr int kMaxBlockSide = 48;  // of launch_block_products

/// The indices that are taken along an axis: those of `runs`, one run after the other.
struct PieceAxis {
  int64_t stride;  // of `from`, elements
  std::span<const PickedRun> runs;
};

/// to[i, j, k] = from[axis 0 number i, axis 1 number j, axis 2 number k]; `to` is dense.
struct Piece {
  const void* from;
  void* to;
  FloatType type;
  PieceAxis axes[kPieceAxes];
};

/// Takes all pieces, of at most 2^31 - 1 elements each. One launch; deterministic.
/// Refused: more pieces or runs than a launch has room for.
LaunchStatus launch_take_pieces(std::span<const Piece> pieces, double phase, cudaStream_t stream);

/// Rows of neighbours, of at least one element; pitch >= columns, in elements.
struct MagnitudeMatrix {
  const void* data;
  FloatType type;
  int64_t rows, columns, pitch;
};

/// How many numbers launch_largest_magnitudes gives.
int64_t magnitude_parts(const MagnitudeMatrix& x);
/// parts[i] = the largest |x| of a part of x, NaN where there is one; together the parts are x. One
/// launch; deterministic.
LaunchStatus launch_largest_magnitudes(const MagnitudeMatrix& x, float* parts, cudaStream_t stream);

/// out[g, c, i, j] = sum of left[r, i] right[r, j] over the rows r of chunk c of group g, row after
/// row in float64: the sum over c is left^T right of the group. left [M, rows of the block], right [M,
/// columns of the block] are dense.
struct BlockProducts {
  const void* left;
  const void* right;
  FloatType left_type, right_type;
  int32_t left_columns, right_columns;  // at most kMaxBlockSide
  int32_t chunks;                       // each group's rows in as many parts
  std::span<const PickedRun> groups;    // begin and size count; at most kMaxRuns
  double* out;
};
/// One launch; deterministic.
LaunchStatus launch_block_products(const BlockProducts& products, cudaStream_t stream);

}  // namespace moe8::cuda
