// SPDX-License-Identifier: BSD-3-Clause
// Cost floor: what is taken is read once; a largest magnitude reads the whole matrix.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/numerics/samples.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksOfPiece = 256;
constexpr int64_t kRunElements = 16384;  // of a dense matrix
constexpr int64_t kMaxParts = 528;       // four blocks on each multiprocessor of Hopper
constexpr int kStagedRows = 32;
constexpr int kAcross = 16;  // threads along each side of a block of products
constexpr int kTile = kMaxBlockSide / kAcross;
static_assert(kAcross * kAcross == kThreads);

struct Axis {
  int64_t stride;
  int32_t first_run;
  uint32_t count;
};

struct PlacedPiece {
  const void* from;
  void* to;
  bool is_bf16;
  Axis axes[kPieceAxes];
};

struct PieceParams {
  double phase;
  PlacedPiece pieces[kMaxPieces];
  PickedRun runs[kMaxRuns];
};

struct BlockParams {
  BlockProducts products;  // `groups` is of the host
  PickedRun groups[kMaxRuns];
};

// Runs of neighbours, `pitch` apart, of which the last one ends at `end`.
struct MagnitudeRuns {
  const void* data;
  int64_t runs, length, pitch, end;
};

MagnitudeRuns runs_of(const MagnitudeMatrix& x) {
  if (x.pitch != x.columns) {
    return {x.data, x.rows, x.columns, x.pitch, (x.rows - 1) * x.pitch + x.columns};
  }
  const int64_t elements = x.rows * x.columns;
  return {x.data, (elements + kRunElements - 1) / kRunElements, kRunElements, kRunElements,
          elements};
}

// ---- device helpers
__device__ int64_t offset_of(const PieceParams& p, const Axis& axis, uint32_t number) {
  const PickedRun* run = p.runs + axis.first_run;
  int64_t i = number;
  for (; i >= run->count; ++run) i -= run->count;
  return picked_index(*run, i, p.phase) * axis.stride;
}

template <typename Bits>
__device__ void take(const PieceParams& p, const PlacedPiece& piece, uint32_t first,
                     uint32_t step) {
  const uint32_t columns = piece.axes[2].count, rows = piece.axes[1].count;
  const uint32_t elements = piece.axes[0].count * rows * columns;
  for (uint32_t at = first; at < elements; at += step) {
    const uint32_t row = at / columns;
    const int64_t offset = offset_of(p, piece.axes[0], row / rows) +
                           offset_of(p, piece.axes[1], row % rows) +
                           offset_of(p, piece.axes[2], at % columns);
    static_cast<Bits*>(piece.to)[at] = __ldg(static_cast<const Bits*>(piece.from) + offset);
  }
}

template <typename T>
__device__ uint32_t largest_in(const void* x, int64_t begin, int64_t end) {
  const T* const values = static_cast<const T*>(x);
  constexpr int kTogether = 8;
  uint32_t largest = 0;
  int64_t at = begin + threadIdx.x;
  for (; at + (kTogether - 1) * kThreads < end; at += kTogether * kThreads) {
    T some[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) some[i] = values[at + i * kThreads];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) largest = max(largest, magnitude_bits(some[i]));
  }
  for (; at < end; at += kThreads) largest = max(largest, magnitude_bits(values[at]));
  return largest;
}

// The block's threads fill shared memory.
__device__ void stage(double* to, const void* x, FloatType type, int64_t from, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    to[i] = type == FloatType::BF16 ? to_float(static_cast<const BFloat16*>(x)[from + i])
                                    : static_cast<const float*>(x)[from + i];
  }
}

// ---- kernels
__global__ void __launch_bounds__(kThreads) take_pieces(const __grid_constant__ PieceParams p) {
  follow_stream();
  const PlacedPiece& piece = p.pieces[blockIdx.x / kBlocksOfPiece];
  const uint32_t first = blockIdx.x % kBlocksOfPiece * kThreads + threadIdx.x;
  constexpr uint32_t kStep = kBlocksOfPiece * kThreads;
  piece.is_bf16 ? take<uint16_t>(p, piece, first, kStep) : take<uint32_t>(p, piece, first, kStep);
}

template <typename T>
__device__ uint32_t largest_of(const MagnitudeRuns& x) {
  uint32_t largest = 0;
  for (int64_t run = blockIdx.x; run < x.runs; run += gridDim.x) {
    const int64_t begin = run * x.pitch;
    largest = max(largest, largest_in<T>(x.data, begin, min(begin + x.length, x.end)));
  }
  return largest;
}

// Magnitudes as bits: NaN is above infinity.
__global__ void __launch_bounds__(kThreads)
    largest_magnitudes(const MagnitudeRuns x, bool is_bf16, float* parts) {
  follow_stream();
  uint32_t largest = is_bf16 ? largest_of<BFloat16>(x) : largest_of<float>(x);
  largest = __reduce_max_sync(~0u, largest);
  __shared__ uint32_t of_warp[kWarps];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const uint32_t other : of_warp) largest = max(largest, other);
  parts[blockIdx.x] = __uint_as_float(largest);
}

// A thread has the elements of a grid with kAcross rows and columns between them.
__global__ void __launch_bounds__(kThreads)
    block_products(const __grid_constant__ BlockParams params) {
  follow_stream();
  const BlockProducts& p = params.products;
  __shared__ double left[kStagedRows * kMaxBlockSide], right[kStagedRows * kMaxBlockSide];
  const int group = static_cast<int>(blockIdx.x) / p.chunks;
  const int chunk = static_cast<int>(blockIdx.x) % p.chunks;
  const int64_t size = params.groups[group].size;
  const int64_t of_chunk = (size + p.chunks - 1) / p.chunks;
  const int64_t first = min(size, chunk * of_chunk), last = min(size, first + of_chunk);
  const int i0 = static_cast<int>(threadIdx.x) / kAcross;
  const int j0 = static_cast<int>(threadIdx.x) % kAcross;
  double sums[kTile][kTile] = {};
  for (int64_t row = first; row < last; row += kStagedRows) {
    const int rows = static_cast<int>(min(static_cast<int64_t>(kStagedRows), last - row));
    const int64_t from = params.groups[group].begin + row;
    stage(left, p.left, p.left_type, from * p.left_columns, rows * p.left_columns);
    stage(right, p.right, p.right_type, from * p.right_columns, rows * p.right_columns);
    __syncthreads();
    const double *a = left + i0, *b = right + j0;
    for (int r = 0; r < rows; ++r, a += p.left_columns, b += p.right_columns) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        if (i0 + i * kAcross >= p.left_columns) break;
#pragma unroll
        for (int j = 0; j < kTile; ++j) {
          if (j0 + j * kAcross >= p.right_columns) break;
          sums[i][j] = fma(a[i * kAcross], b[j * kAcross], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
  double* const out = p.out + int64_t{blockIdx.x} * p.left_columns * p.right_columns;
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const int at_i = i0 + i * kAcross, at_j = j0 + j * kAcross;
      if (at_i < p.left_columns && at_j < p.right_columns) {
        out[at_i * p.right_columns + at_j] = sums[i][j];
      }
    }
  }
}

}  // namespace

// ---- launches
LaunchStatus launch_take_pieces(std::span<const Piece> pieces, double phase, cudaStream_t stream) {
  if (pieces.empty()) return {};
  if (pieces.size() > kMaxPieces) return refused("more pieces than a launch has room for");
  PieceParams p{.phase = phase};
  int32_t runs = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    PlacedPiece& placed = p.pieces[i];
    placed = {piece.from, piece.to, piece.type == FloatType::BF16, {}};
    int64_t elements = 1;
    for (int a = 0; a < kPieceAxes; ++a) {
      const PieceAxis& axis = piece.axes[a];
      if (runs + axis.runs.size() > kMaxRuns)
        return refused("more runs than a launch has room for");
      int64_t count = 0;
      for (const PickedRun& run : axis.runs) count += run.count;
      placed.axes[a] = {axis.stride, runs, static_cast<uint32_t>(count)};
      std::copy(axis.runs.begin(), axis.runs.end(), p.runs + runs);
      runs += static_cast<int32_t>(axis.runs.size());
      elements *= count;
    }
    if (elements > INT32_MAX) return refused("a piece of more than 2^31 - 1 elements");
  }
  return launch_early(take_pieces, kBlocksOfPiece * static_cast<int64_t>(pieces.size()), kThreads,
                      0, stream, p);
}

int64_t magnitude_parts(const MagnitudeMatrix& x) {
  return std::min(runs_of(x).runs, kMaxParts);
}

LaunchStatus launch_largest_magnitudes(const MagnitudeMatrix& x, float* parts,
                                       cudaStream_t stream) {
  return launch_early(largest_magnitudes, magnitude_parts(x), kThreads, 0, stream, runs_of(x),
                      x.type == FloatType::BF16, parts);
}

LaunchStatus launch_block_products(const BlockProducts& products, cudaStream_t stream) {
  const auto groups = static_cast<int64_t>(products.groups.size());
  if (groups == 0) return {};
  if (groups > kMaxRuns) return refused("more groups than a launch has room for");
  if (std::max(products.left_columns, products.right_columns) > kMaxBlockSide) {
    return refused("a larger block than a launch has room for");
  }
  BlockParams p{products, {}};
  std::copy(products.groups.begin(), products.groups.end(), p.groups);
  return launch_early(block_products, groups * products.chunks, kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
