// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes with one scale per row, and in the same pass the amax per group and column.
// Cost floor: each element is read once and its code written once, 3 bytes in bf16.
//
// A block takes one slab of 64 (or 32) rows of one group. kRowThreads threads share a row (short
// rows: one warp, so that no barrier is needed) and hold it in registers: load, amax over the row,
// convert, store, while the next row is on its way. A thread owns the same columns in all rows, so
// the column amax costs one instruction per two elements.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/quantize/clear.h"
#include "cuda/quantize/float8.cuh"
#include "cuda/quantize/float8.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;  // one team of threads on a row, two on two rows, or eight on eight

// Fewer slabs than this leave the last wave of blocks half empty: then each takes 32 rows.
constexpr int64_t kManyBlocks = 8;  // of a multiprocessor

struct Rows {
  Float8RowsArgs args;
  RowChunks slabs;
  int64_t skipped;  // rows of other parts between two groups of the result

  // The row of the result that a slab's first row becomes.
  __device__ int64_t result_row(const RowChunk& slab) const {
    return slab.row + slab.group * skipped + args.joined.first;
  }
};

// ---- device helpers
// A thread's packets of one row: every kRowThreads-th.
template <typename T, int kRowThreads, int kPackets>
struct RowPart {
  Packet<T> packets[kPackets];

  __device__ void load(const T* row, int thread, int64_t columns) {
#pragma unroll
    for (int v = 0; v < kPackets; ++v) {
      const int64_t column = (v * kRowThreads + thread) * Packet<T>::kElements;
      packets[v] = column < columns ? load_packet(row + column) : Packet<T>{};
    }
  }

  __device__ uint32_t amax() const {
    Packet<T> m = packets[0];
#pragma unroll
    for (int v = 1; v < kPackets; ++v) update_magnitudes(m, packets[v]);
    return largest_magnitude(m);
  }

  // Past the last column the packets hold zeros, which a NaN as scale must not touch.
  template <ElemDtype elem>
  __device__ void store_codes(const Float8RowsArgs& a, uint8_t* row, int thread,
                              float scale) const {
#pragma unroll
    for (int v = 0; v < kPackets; ++v) {
      const int64_t column = (v * kRowThreads + thread) * Packet<T>::kElements;
      const float factor = column < a.columns ? scale : 0.0f;
      if (column < a.pitch) store_packet(row + column, encode_packet<elem>(packets[v], factor));
    }
  }
};

// The largest value of the threads that share a row; called by all teams of the block together.
// `shared` must not be written again before all have passed one more barrier: callers alternate
// between two.
template <int kRowThreads>
__device__ uint32_t row_max(uint32_t value, int thread, uint32_t* shared) {
  value = __reduce_max_sync(~0u, value);
  if constexpr (kRowThreads == 32) return value;
  if (thread % 32 == 0) shared[thread / 32] = value;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kRowThreads / 32; ++w) value = max(value, shared[w]);
  return value;
}

// Column maxima of the block's teams, merged by way of shared memory, so that neighbouring threads
// send neighbouring atomics and only one per column.
template <typename T, int kRowThreads, int kPackets>
__device__ void flush_columns(const RowPart<T, kRowThreads, kPackets>& columns, int team,
                              int thread, int64_t count, uint32_t* out) {
  constexpr int kTeams = kThreads / kRowThreads;
  __shared__ Packet<T> maxima[kTeams][kPackets * kRowThreads];
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    maxima[team][v * kRowThreads + thread] = columns.packets[v];
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < count; c += kThreads) {
    uint32_t m = 0;
#pragma unroll
    for (int t = 0; t < kTeams; ++t) {
      m = max(m, magnitude_bits(reinterpret_cast<const T*>(maxima[t])[c]));
    }
    if (m != 0) atomicMax(out + c, m);
  }
}

__device__ void write_scale(const Float8RowsArgs& a, int64_t row, float scale) {
  a.inverse_scale[row] = inverse_of(scale);
  if (a.scale != nullptr) a.scale[row] = scale;
}

// ---- kernel
template <typename T, ElemDtype elem, int kRowThreads, int kPackets>
__global__ void __launch_bounds__(kThreads, 2) quantize_rows(const __grid_constant__ Rows p) {
  constexpr int kTeams = kThreads / kRowThreads;
  __shared__ uint32_t exchange[2][kTeams][kRowThreads / 32];
  const Float8RowsArgs& a = p.args;
  follow_stream();
  const RowChunk slab = p.slabs.at(blockIdx.x);
  if (slab.rows == 0) return;
  const int team = threadIdx.x / kRowThreads;
  const int thread = threadIdx.x % kRowThreads;
  const T* x = static_cast<const T*>(a.x) + slab.row * a.columns;
  const int64_t out = p.result_row(slab);

  using Part = RowPart<T, kRowThreads, kPackets>;
  Part columns{}, next{};
  if (team < slab.rows) next.load(x + team * a.columns, thread, a.columns);
  for (int first = 0, turn = 0; first < slab.rows; first += kTeams, turn ^= 1) {
    const int r = first + team;
    const Part row = next;
    next = Part{};
    if (r + kTeams < slab.rows) next.load(x + (r + kTeams) * a.columns, thread, a.columns);
#pragma unroll
    for (int v = 0; v < kPackets; ++v) update_magnitudes(columns.packets[v], row.packets[v]);

    const uint32_t amax = row_max<kRowThreads>(row.amax(), thread, exchange[turn][team]);
    if (r >= slab.rows) continue;  // the last turn may have too few rows for all teams
    const float scale = scale_of<elem>(amax, a.round_scales_to_power_of_2);
    const int64_t at = out + r;
    if (thread == 0) write_scale(a, at, scale);
    row.template store_codes<elem>(a, a.codes + at * a.pitch, thread, scale);
  }
  if (a.column_amax != nullptr && slab.group != kNoGroup) {
    flush_columns(columns, team, thread, a.columns, a.column_amax + slab.group * a.columns);
  }
}

// Rows of any length at any address: one element at a time, read again for each of its uses.
template <typename T, ElemDtype elem>
__global__ void __launch_bounds__(kThreads) quantize_any_rows(const __grid_constant__ Rows p) {
  __shared__ uint32_t exchange[2][kThreads / 32];
  const Float8RowsArgs& a = p.args;
  follow_stream();
  const RowChunk slab = p.slabs.at(blockIdx.x);
  const T* x = static_cast<const T*>(a.x) + slab.row * a.columns;
  const int64_t out = p.result_row(slab);

  for (int r = 0; r < slab.rows; ++r, x += a.columns) {
    uint32_t amax = 0;
    for (int64_t c = threadIdx.x; c < a.columns; c += kThreads) {
      amax = max(amax, magnitude_bits(x[c]));
    }
    amax = row_max<kThreads>(amax, threadIdx.x, exchange[r % 2]);
    const float scale = scale_of<elem>(amax, a.round_scales_to_power_of_2);
    const int64_t at = out + r;
    if (threadIdx.x == 0) write_scale(a, at, scale);
    for (int64_t c = threadIdx.x; c < a.pitch; c += kThreads) {
      const uint32_t code = c < a.columns ? encode_pair<elem>(to_float(x[c]) * scale, 0.0f) : 0u;
      a.codes[at * a.pitch + c] = static_cast<uint8_t>(code);
    }
  }
  if (a.column_amax == nullptr || slab.group == kNoGroup) return;
  x = static_cast<const T*>(a.x) + slab.row * a.columns;
  for (int64_t c = threadIdx.x; c < a.columns; c += kThreads) {
    uint32_t amax = 0;
    for (int r = 0; r < slab.rows; ++r) amax = max(amax, magnitude_bits(x[r * a.columns + c]));
    if (amax != 0) atomicMax(a.column_amax + slab.group * a.columns + c, amax);
  }
}

// ---- launch
using Kernel = void (*)(Rows);

/// A kernel and the longest row that its threads can hold.
struct Choice {
  int64_t pitch;
  Kernel kernel;
  Float8RowsVariant variant;
};

template <typename T, ElemDtype elem, int kRowThreads, int kPackets>
constexpr Choice choice() {
  return {kRowThreads * kPackets * Packet<T>::kElements,
          quantize_rows<T, elem, kRowThreads, kPackets>,
          {kRowThreads, kPackets}};
}

// Shortest first. Registers allow eight packets of bf16 (four of float32) three times over: the
// row, the next one, the column maxima.
template <typename T, ElemDtype elem>
Choice choose(const Float8RowsArgs& a) {
  constexpr Choice kAny{INT64_MAX, quantize_any_rows<T, elem>, {0, 0}};
  const bool whole = a.columns % Packet<T>::kElements == 0;
  if (!whole || !is_aligned(a.x, a.columns, sizeof(T))) return kAny;
  if constexpr (sizeof(T) == 2) {
    constexpr Choice kChoices[] = {
        choice<T, elem, 32, 1>(),  choice<T, elem, 32, 2>(),  choice<T, elem, 32, 3>(),
        choice<T, elem, 32, 4>(),  choice<T, elem, 128, 2>(), choice<T, elem, 128, 3>(),
        choice<T, elem, 128, 4>(), choice<T, elem, 128, 5>(), choice<T, elem, 128, 6>(),
        choice<T, elem, 128, 7>(), choice<T, elem, 128, 8>(), choice<T, elem, 256, 8>()};
    for (const Choice& c : kChoices) {
      if (a.pitch <= c.pitch) return c;
    }
  } else {
    constexpr Choice kChoices[] = {choice<T, elem, 128, 1>(), choice<T, elem, 128, 2>(),
                                   choice<T, elem, 128, 4>(), choice<T, elem, 256, 4>()};
    for (const Choice& c : kChoices) {
      if (a.pitch <= c.pitch) return c;
    }
  }
  return kAny;
}

Choice choose(const Float8RowsArgs& a) {
  using enum ElemDtype;
  if (a.elem == E4M3) {
    return a.x_type == FloatType::BF16 ? choose<BFloat16, E4M3>(a) : choose<float, E4M3>(a);
  }
  return a.x_type == FloatType::BF16 ? choose<BFloat16, E5M2>(a) : choose<float, E5M2>(a);
}

}  // namespace

Float8RowsVariant choose_float8_rows(const Float8RowsArgs& args) {
  return choose(args).variant;
}

LaunchStatus launch_float8_rows(const Float8RowsArgs& a, cudaStream_t stream) {
  const bool fits = a.elem == ElemDtype::E4M3 || a.elem == ElemDtype::E5M2;
  if (!fits) return refused("a format that the hardware does not convert to");
  if (!a.groups.is_valid()) return refused("more rows than 32 bits count");
  if (a.pitch % 16 != 0 || a.pitch < a.columns)
    return refused("a pitch of codes that does not fit");
  if (!a.joined.fits(a.groups)) return refused("joined rows that do not fit into their result");
  if (a.column_amax != nullptr && !a.adds_to_column_amax) {
    const LaunchStatus cleared = launch_clear(a.column_amax, a.groups.groups * a.columns, stream);
    if (!cleared.ok()) return cleared;
  }
  const bool few = a.groups.rows < kSlabRows * kManyBlocks * multiprocessor_count();
  const int64_t skipped = a.joined.is_joined() ? a.joined.group_rows - a.groups.group_rows : 0;
  const Rows rows{a, few ? blocks_of(a.groups) : slabs_of(a.groups), skipped};
  if (a.groups.rows == 0 || rows.slabs.count == 0) return {};
  return launch_early(choose(a).kernel, rows.slabs.count, kThreads, 0, stream, rows);
}

}  // namespace moe8::cuda
