// SPDX-License-Identifier: BSD-3-Clause
// A token's rows gathered and summed. Cost floor: each row is read once, each result written once.
//
// A warp has eight columns a lane of one token, loads them of up to kBatch of its rows at once and adds
// in the order of its slots. Which rows, and how much each counts, lanes load side by side and
// exchange.
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
constexpr int kLoads = 8;  // packets that a lane loads at once

struct Combine {
  CombineArgs args;
  int64_t pieces;  // warps on a token
  bool aligned;    // all that is read and written, in 16-byte pieces
};

// ---- device helpers
/// What a warp knows of up to 32 slots, one per lane.
struct Slots {
  int32_t row;  // past the last group: kNone
  float score;
  int64_t expert;

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
    expert = a.experts_type == IndexType::I64 ? static_cast<const int64_t*>(a.experts)[slot]
                                              : static_cast<const int32_t*>(a.experts)[slot];
  }
};

template <typename T>
__device__ Packet<T> load(const void* x, bool aligned, int64_t row, int64_t columns,
                          int64_t column) {
  const T* p = static_cast<const T*>(x) + row * columns + column;
  return aligned ? load_packet(p) : load_elements(p, columns - column);
}

// sum += w * (row + bias), each step rounded by itself.
template <typename T>
__device__ void add(const CombineArgs& a, float (&sum)[kElements], const Packet<T>& row, float w,
                    const Packet<float>& bias) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    float y = row.get(i);
    if (a.bias != nullptr) y = __fadd_rn(y, bias.get(i));
    if (a.scores != nullptr) y = __fmul_rn(y, w);
    sum[i] = __fadd_rn(sum[i], y);
  }
}

__device__ Packet<float> load_bias(const Combine& p, int64_t expert, int64_t column) {
  const CombineArgs& a = p.args;
  if (a.bias == nullptr) return {};
  if (a.bias_type == FloatType::F32) {
    return load<float>(a.bias, p.aligned, expert, a.columns, column);
  }
  const auto halves = load<BFloat16>(a.bias, p.aligned, expert, a.columns, column);
  Packet<float> bias;
#pragma unroll
  for (int i = 0; i < kElements; ++i) bias.words[i] = __float_as_uint(halves.get(i));
  return bias;
}

template <typename Out>
__device__ void store(const Combine& p, int64_t token, int64_t column,
                      const float (&sum)[kElements]) {
  Packet<Out> packet{};
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if constexpr (sizeof(Out) == 4) {
      packet.words[i] = __float_as_uint(sum[i]);
    } else {
      packet.words[i / 2] |= uint32_t{from_float<BFloat16>(sum[i]).bits} << (i % 2 * 16);
    }
  }
  Out* out = static_cast<Out*>(p.args.out) + token * p.args.columns + column;
  p.aligned ? store_packet(out, packet) : store_elements(out, packet, p.args.columns - column);
}

// ---- kernel
// kPackets packets a lane of kLoads / kPackets rows at once.
template <typename T, typename Out, int kPackets>
__global__ void __launch_bounds__(kThreads) combine_rows(const __grid_constant__ Combine p) {
  constexpr int kBatch = kLoads / kPackets;
  const CombineArgs& a = p.args;
  follow_stream();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t token = warp / p.pieces;
  if (token >= a.tokens) return;
  const int lane = threadIdx.x % 32;
  const int64_t column = (warp % p.pieces * (32 * kPackets) + lane) * kElements;

  float sum[kPackets][kElements] = {};
  for (int64_t first = 0; first < a.top_k; first += 32) {
    const Slots own(a, token * a.top_k + first + lane, first + lane < a.top_k);
    const int count = static_cast<int>(min(a.top_k - first, int64_t{32}));
    for (int j = 0; j < count; j += kBatch) {
      Packet<T> rows[kBatch][kPackets];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int32_t row = __shfl_sync(~0u, own.row, j + b);
#pragma unroll
        for (int v = 0; v < kPackets; ++v) {
          const int64_t c = column + v * (32 * kElements);
          const bool is_there = j + b < count && row != Slots::kNone && c < a.columns;
          rows[b][v] = is_there ? load<T>(a.rows, p.aligned, row, a.columns, c) : Packet<T>{};
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int32_t row = __shfl_sync(~0u, own.row, j + b);
        const float score = __shfl_sync(~0u, own.score, j + b);
        const int64_t expert = __shfl_sync(~0u, own.expert, j + b);
        if (j + b >= count || row == Slots::kNone) continue;
#pragma unroll
        for (int v = 0; v < kPackets; ++v) {
          const int64_t c = column + v * (32 * kElements);
          if (c < a.columns) add(a, sum[v], rows[b][v], score, load_bias(p, expert, c));
        }
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    const int64_t c = column + v * (32 * kElements);
    if (c < a.columns) store<Out>(p, token, c, sum[v]);
  }
}

// ---- launch
using Kernel = void (*)(Combine);

template <typename T, typename Out>
Kernel choose(int packets) {
  return packets == 8   ? combine_rows<T, Out, 8>
         : packets == 4 ? combine_rows<T, Out, 4>
         : packets == 2 ? combine_rows<T, Out, 2>
                        : combine_rows<T, Out, 1>;
}

template <typename T>
Kernel choose(FloatType out, int packets) {
  return out == FloatType::BF16 ? choose<T, BFloat16>(packets) : choose<T, float>(packets);
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
  const int packets = a.top_k >= 5 ? 1 : a.top_k >= 3 ? 2 : a.top_k == 2 ? 4 : 8;
  const Combine p{a, ceil_div(a.columns, 32 * kElements * packets), in_whole_packets(a)};
  const Kernel kernel = a.rows_type == FloatType::BF16 ? choose<BFloat16>(a.out_type, packets)
                                                       : choose<float>(a.out_type, packets);
  return launch_early(kernel, ceil_div(a.tokens * p.pieces, kWarps), kThreads, 0, stream, p);
}

}  // namespace moe8::cuda
