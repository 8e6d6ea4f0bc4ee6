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
constexpr int64_t kWide = 16;            // bytes
constexpr int64_t kUnitsOfBlock = 1024;  // a block for each so many
constexpr int64_t kMaxParts = 1056;      // eight blocks on each multiprocessor of Hopper
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

// What a thread reads at once: an element, or as many as 16 bytes hold where all rows begin and end there.
struct MagnitudeUnits {
  const void* data;
  bool is_wide;
  int64_t rows, columns, pitch;  // in units
};

MagnitudeUnits units_of(const MagnitudeMatrix& x) {
  const bool is_whole = x.rows == 1 || x.pitch == x.columns;
  const int64_t elements = x.type == FloatType::BF16 ? kWide / 2 : kWide / 4;
  MagnitudeUnits units{x.data, false, is_whole ? 1 : x.rows,
                       is_whole ? x.rows * x.columns : x.columns, is_whole ? 0 : x.pitch};
  units.is_wide = reinterpret_cast<uintptr_t>(x.data) % kWide == 0 &&
                  units.columns % elements == 0 && units.pitch % elements == 0;
  if (units.is_wide) {
    units.columns /= elements;
    units.pitch /= elements;
  }
  return units;
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

// The larger of each half of two words of bf16, and of two words of float32: NaN is above infinity.
template <typename T>
__device__ uint32_t larger(uint32_t a, uint32_t word) {
  if constexpr (sizeof(T) == 2) return __vmaxu2(a, word & 0x7FFF7FFFu);
  return max(a, word & 0x7FFFFFFFu);
}
template <typename T>
__device__ uint32_t larger(uint32_t a, uint4 words) {
  return larger<T>(larger<T>(larger<T>(larger<T>(a, words.x), words.y), words.z), words.w);
}

// The bits of the largest magnitude, as those of a float.
template <typename T, typename Unit>
__device__ uint32_t largest_of(const MagnitudeUnits& x) {
  constexpr int kTogether = 4;
  const Unit* const data = static_cast<const Unit*>(x.data);
  const int64_t count = x.rows * x.columns, step = int64_t{gridDim.x} * kThreads;
  const auto unit = [&](int64_t i) {
    return data[x.rows == 1 ? i : i / x.columns * x.pitch + i % x.columns];
  };
  uint32_t largest = 0;
  int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; at + (kTogether - 1) * step < count; at += kTogether * step) {
    Unit some[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) some[i] = unit(at + i * step);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) largest = larger<T>(largest, some[i]);
  }
  for (; at < count; at += step) largest = larger<T>(largest, unit(at));
  return sizeof(T) == 2 ? max(largest & 0xFFFFu, largest >> 16) << 16 : largest;
}

// Rows of a side of a block of products on their way to shared memory: what each thread has of them.
struct StagedRows {
  static constexpr int kEach = kStagedRows * kMaxBlockSide / kThreads;
  static_assert(kEach * kThreads == kStagedRows * kMaxBlockSide);

  float values[kEach];
  int count;  // of all threads

  __device__ void load(const void* x, FloatType type, int64_t from, int elements) {
    count = elements;
    type == FloatType::BF16 ? read(static_cast<const BFloat16*>(x) + from)
                            : read(static_cast<const float*>(x) + from);
  }
  __device__ void store(double* to) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (place(i) < count) to[place(i)] = static_cast<double>(values[i]);
    }
  }

 private:
  __device__ static int place(int i) {
    return static_cast<int>(threadIdx.x) + i * kThreads;
  }
  // All together: none waits for the one before.
  template <typename T>
  __device__ void read(const T* x) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) values[i] = place(i) < count ? to_float(x[place(i)]) : 0;
  }
};

// ---- kernels
__global__ void __launch_bounds__(kThreads) take_pieces(const __grid_constant__ PieceParams p) {
  follow_stream();
  const PlacedPiece& piece = p.pieces[blockIdx.x / kBlocksOfPiece];
  const uint32_t first = blockIdx.x % kBlocksOfPiece * kThreads + threadIdx.x;
  constexpr uint32_t kStep = kBlocksOfPiece * kThreads;
  piece.is_bf16 ? take<uint16_t>(p, piece, first, kStep) : take<uint32_t>(p, piece, first, kStep);
}

template <typename T, typename Unit>
__global__ void __launch_bounds__(kThreads)
    largest_magnitudes(const MagnitudeUnits x, float* parts) {
  follow_stream();
  uint32_t largest = largest_of<T, Unit>(x);
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
  StagedRows next_left, next_right;
  const auto load = [&](int64_t row) {  // returns how many rows
    const int rows = static_cast<int>(max(min(last - row, int64_t{kStagedRows}), int64_t{0}));
    const int64_t from = params.groups[group].begin + row;
    next_left.load(p.left, p.left_type, from * p.left_columns, rows * p.left_columns);
    next_right.load(p.right, p.right_type, from * p.right_columns, rows * p.right_columns);
    return rows;
  };
  int rows = load(first);
  for (int64_t row = first; row < last; row += kStagedRows) {
    next_left.store(left);
    next_right.store(right);
    __syncthreads();
    const int staged = rows;
    rows = load(row + kStagedRows);  // arrives while these are multiplied
    const double *a = left + i0, *b = right + j0;
#pragma unroll 4
    for (int r = 0; r < staged; ++r, a += p.left_columns, b += p.right_columns) {
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
  const MagnitudeUnits units = units_of(x);
  const int64_t blocks = (units.rows * units.columns + kUnitsOfBlock - 1) / kUnitsOfBlock;
  return std::min(blocks, kMaxParts);
}

LaunchStatus launch_largest_magnitudes(const MagnitudeMatrix& x, float* parts,
                                       cudaStream_t stream) {
  const MagnitudeUnits units = units_of(x);
  const bool is_bf16 = x.type == FloatType::BF16;
  const auto kernel = units.is_wide ? is_bf16 ? largest_magnitudes<BFloat16, uint4>
                                              : largest_magnitudes<float, uint4>
                      : is_bf16 ? largest_magnitudes<BFloat16, uint16_t>
                                    : largest_magnitudes<float, uint32_t>;
  return launch_early(kernel, magnitude_parts(x), kThreads, 0, stream, units, parts);
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
