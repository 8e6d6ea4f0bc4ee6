// SPDX-License-Identifier: BSD-3-Clause
// A token's rows gathered and summed. Cost floor: each row is read once, each result written once.
//
// A lane has eight columns of one token, or of fewer rows more columns, so that eight 16-byte loads
// are on their way at once; then it adds in the order of the slots. Which rows, and how much each
// counts, lanes load side by side and exchange.
#include "cuda/experts/combine.h"
#include "cuda/launch.cuh"
#include "cuda/quantize/packet.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kElements = Packet<float>::kElements;
constexpr int kMostSlots = 8;  // whose rows are loaded at once

struct Combine {
  CombineArgs args;
  int64_t pieces;  // warps on a token
};

// ---- device helpers
/// What a warp knows of up to 32 slots, one per lane.
struct Slots {
  int32_t row;  // past the last group: kNone
  float score;
  int32_t expert;

  static constexpr int32_t kNone = -1;

  __device__ Slots(const CombineArgs& a, int64_t slot, bool is_there)
      : row(kNone), score(1.0f), expert(0) {
    if (!is_there) return;
    const int32_t end = a.rows_in_groups == nullptr ? INT32_MAX : *a.rows_in_groups;
    const int32_t at = a.row_of_slot[slot];
    if (at >= end) return;
    row = at;
    if (a.scores != nullptr) score = a.scores[slot];
    if (a.bias == nullptr) return;
    expert = a.experts_type == IndexType::I64
                 ? static_cast<int32_t>(static_cast<const int64_t*>(a.experts)[slot])
                 : static_cast<const int32_t*>(a.experts)[slot];
  }
};

/// Columns of a matrix, in whole packets where rows and addresses allow it (kAligned).
template <typename T, bool kAligned>
__device__ Packet<T> load(const void* x, int64_t row, int64_t columns, int64_t column) {
  const T* p = static_cast<const T*>(x) + row * columns + column;
  return kAligned ? load_packet(p) : load_elements(p, columns - column);
}

// Many tokens read the same bias: by way of the L1, past which rows are read.
template <typename T, bool kAligned>
__device__ void load_bias(const void* bias, int64_t at, int64_t left, float (&out)[kElements]) {
  const T* p = static_cast<const T*>(bias) + at;
  Packet<T> packet;
  if constexpr (kAligned) {
#pragma unroll
    for (int w = 0; w < Packet<T>::kWords; w += 4) {
      const uint4 v = reinterpret_cast<const uint4*>(p)[w / 4];
      packet.words[w] = v.x, packet.words[w + 1] = v.y;
      packet.words[w + 2] = v.z, packet.words[w + 3] = v.w;
    }
  } else {
    packet = load_elements(p, left);
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) out[i] = packet.get(i);
}

template <bool kAligned>
__device__ void load_bias(const CombineArgs& a, int64_t expert, int64_t column,
                          float (&bias)[kElements]) {
  const int64_t at = expert * a.columns + column, left = a.columns - column;
  if (a.bias_type == FloatType::F32) {
    load_bias<float, kAligned>(a.bias, at, left, bias);
  } else {
    load_bias<BFloat16, kAligned>(a.bias, at, left, bias);
  }
}

// sum += w * (row + bias), each step rounded by itself.
template <typename T, bool kAligned>
__device__ void add(const CombineArgs& a, float (&sum)[kElements], const Packet<T>& row,
                    float score, int32_t expert, int64_t column) {
  float y[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) y[i] = row.get(i);
  if (a.bias != nullptr) {
    float bias[kElements];
    load_bias<kAligned>(a, expert, column, bias);
#pragma unroll
    for (int i = 0; i < kElements; ++i) y[i] = __fadd_rn(y[i], bias[i]);
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (a.scores != nullptr) y[i] = __fmul_rn(y[i], score);
    sum[i] = __fadd_rn(sum[i], y[i]);
  }
}

// Two floats to bf16, nearest even.
__device__ uint32_t round_pair(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

template <typename Out, bool kAligned>
__device__ void store(const CombineArgs& a, int64_t token, int64_t column,
                      const float (&sum)[kElements]) {
  Packet<Out> packet;
  if constexpr (sizeof(Out) == 4) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) packet.words[i] = __float_as_uint(sum[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kElements; i += 2) packet.words[i / 2] = round_pair(sum[i], sum[i + 1]);
  }
  Out* out = static_cast<Out*>(a.out) + token * a.columns + column;
  kAligned ? store_packet(out, packet) : store_elements(out, packet, a.columns - column);
}

/// The place of a warp.
struct Place {
  int64_t token;
  int64_t column;  // of the lane's first packet

  template <int kPackets>
  __device__ static Place of(const Combine& p) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int64_t packet = warp % p.pieces * (32 * kPackets) + threadIdx.x % 32;
    return {warp / p.pieces, packet * kElements};
  }
  __device__ int64_t column_of(int packet) const { return column + packet * (32 * kElements); }
};

// ---- kernels
// Tokens with at most kSlots slots: all of their rows are loaded at once.
template <typename T, typename Out, int kSlots, int kPackets>
__global__ void __launch_bounds__(kThreads) combine_few(const __grid_constant__ Combine p) {
  const CombineArgs& a = p.args;
  follow_stream();
  const Place place = Place::of<kPackets>(p);
  if (place.token >= a.tokens) return;
  const int lane = threadIdx.x % 32;
  const Slots own(a, place.token * a.top_k + lane, lane < a.top_k);

  Packet<T> rows[kSlots][kPackets];
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    const int32_t row = __shfl_sync(~0u, own.row, j);
#pragma unroll
    for (int v = 0; v < kPackets; ++v) {
      const int64_t column = place.column_of(v);
      const bool is_there = row != Slots::kNone && column < a.columns;
      rows[j][v] = is_there ? load<T, true>(a.rows, row, a.columns, column) : Packet<T>{};
    }
  }
  float sum[kPackets][kElements] = {};
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    const int32_t row = __shfl_sync(~0u, own.row, j);
    const float score = __shfl_sync(~0u, own.score, j);
    const int32_t expert = __shfl_sync(~0u, own.expert, j);
    if (row == Slots::kNone) continue;
#pragma unroll
    for (int v = 0; v < kPackets; ++v) {
      const int64_t column = place.column_of(v);
      if (column < a.columns) add<T, true>(a, sum[v], rows[j][v], score, expert, column);
    }
  }
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    const int64_t column = place.column_of(v);
    if (column < a.columns) store<Out, true>(a, place.token, column, sum[v]);
  }
}

// Any number of slots, columns and any address.
template <typename T, typename Out, bool kAligned>
__global__ void __launch_bounds__(kThreads) combine_any(const __grid_constant__ Combine p) {
  const CombineArgs& a = p.args;
  follow_stream();
  const Place place = Place::of<1>(p);
  if (place.token >= a.tokens) return;
  const int lane = threadIdx.x % 32;
  float sum[kElements] = {};
  for (int64_t first = 0; first < a.top_k; first += 32) {
    const Slots own(a, place.token * a.top_k + first + lane, first + lane < a.top_k);
    const int count = static_cast<int>(min(a.top_k - first, int64_t{32}));
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
      const int32_t row = __shfl_sync(~0u, own.row, j);
      const float score = __shfl_sync(~0u, own.score, j);
      const int32_t expert = __shfl_sync(~0u, own.expert, j);
      if (row == Slots::kNone || place.column >= a.columns) continue;
      const Packet<T> packet = load<T, kAligned>(a.rows, row, a.columns, place.column);
      add<T, kAligned>(a, sum, packet, score, expert, place.column);
    }
  }
  if (place.column < a.columns) store<Out, kAligned>(a, place.token, place.column, sum);
}

// ---- launch
struct Choice {
  void (*kernel)(Combine);
  int packets;
};

template <typename T, typename Out>
Choice choose(const CombineArgs& a, bool aligned) {
  if (!aligned) return {combine_any<T, Out, false>, 1};
  if (a.top_k > kMostSlots) return {combine_any<T, Out, true>, 1};
  if (a.top_k > 4) return {combine_few<T, Out, kMostSlots, 1>, 1};
  if (a.top_k > 2) return {combine_few<T, Out, 4, 2>, 2};
  if (a.top_k > 1) return {combine_few<T, Out, 2, 2>, 2};
  return {combine_few<T, Out, 1, 4>, 4};
}

template <typename T>
Choice choose(const CombineArgs& a, bool aligned) {
  return a.out_type == FloatType::BF16 ? choose<T, BFloat16>(a, aligned)
                                       : choose<T, float>(a, aligned);
}

bool in_whole_packets(const CombineArgs& a) {
  const auto bytes = [](FloatType type) { return type == FloatType::BF16 ? 2 : 4; };
  return is_aligned(a.rows, a.columns, bytes(a.rows_type)) &&
         is_aligned(a.out, a.columns, bytes(a.out_type)) && a.columns % kElements == 0 &&
         (a.bias == nullptr || is_aligned(a.bias, a.columns, bytes(a.bias_type)));
}

}  // namespace

LaunchStatus launch_combine(const CombineArgs& a, cudaStream_t stream) {
  if (a.tokens * a.top_k > INT32_MAX) return refused("more rows than 32 bits count");
  if (a.tokens * a.columns == 0) return {};
  const bool aligned = in_whole_packets(a);
  const Choice choice =
      a.rows_type == FloatType::BF16 ? choose<BFloat16>(a, aligned) : choose<float>(a, aligned);
  const Combine p{a, ceil_div(a.columns, 32 * kElements * choice.packets)};
  return launch_early(choice.kernel, ceil_div(a.tokens * p.pieces, kWarps), kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
