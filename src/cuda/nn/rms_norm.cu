// SPDX-License-Identifier: BSD-3-Clause
// RMSNorm of rows in whole packets. A team of threads, one warp or a few, holds a row in registers,
// so that memory is read once. In backward a team takes every n-th row and keeps its share of the
// weight's gradient in registers as well; blocks write theirs as parts, which a second kernel sums.
#include <algorithm>
#include <initializer_list>

#include "cuda/launch.cuh"
#include "cuda/nn/rms_norm.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kBlock = 256;     // threads, or the row's, where those are more
constexpr int kMostTeam = 512;  // threads that share a row
constexpr int kMostShared = kBlock / 2 * 4 * kPacket;  // columns of teams that share a block

template <typename T>
constexpr int kMostPackets = sizeof(T) == 2 ? 4 : 2;  // that a thread holds

/// Who works on a row.
struct TeamShape {
  int threads;  // a power of two from 32 on; 0: rows do not fit
  int packets;  // of each
  int block() const { return std::max(threads, kBlock); }
  int per_block() const { return block() / threads; }
};

TeamShape team_for(int64_t columns, int most_packets) {
  const int64_t packets = columns / kPacket;
  int threads = 32;
  while (threads * most_packets < packets && threads < kMostTeam) threads *= 2;
  if (threads * most_packets < packets) return {0, 0};
  return {threads, static_cast<int>(ceil_div(packets, threads))};
}

template <typename Args>
struct Norm {
  Args args;
  int team_threads;
};

// ---- device helpers
/// The threads that share a row.
struct Team {
  int threads, thread;
  int index;  // in the block

  __device__ explicit Team(int n)
      : threads(n), thread(static_cast<int>(threadIdx.x) % n), index(threadIdx.x / n) {}

  __device__ int64_t column_of(int packet) const {
    return (static_cast<int64_t>(packet) * threads + thread) * kPacket;
  }

  /// Of all, in each of them, always in the same order. `turn` alternates between calls: so a
  /// thread that is quicker writes where nobody reads.
  __device__ float sum(float value, int turn) const {
    __shared__ float shared[2][kMostTeam / 32];
    for (int step = 16; step > 0; step /= 2) {
      value = __fadd_rn(value, __shfl_xor_sync(~0u, value, step));
    }
    if (threads == 32) return value;
    const int first = index * threads / 32;
    float* row = shared[turn % 2];
    if (threadIdx.x % 32 == 0) row[threadIdx.x / 32] = value;
    asm volatile("bar.sync %0, %1;" ::"r"(1 + index), "r"(threads) : "memory");
    value = row[first];
    for (int warp = 1; warp < threads / 32; ++warp) value = __fadd_rn(value, row[first + warp]);
    return value;
  }
};

template <typename T, int kPackets>
struct RowPackets {
  Packet<T> packets[kPackets];

  __device__ void load(const void* x, int64_t row, int64_t columns, const Team& team) {
#pragma unroll
    for (int v = 0; v < kPackets; ++v) {
      const int64_t column = team.column_of(v);
      packets[v] = column < columns ? load_packet(static_cast<const T*>(x) + row * columns + column)
                                    : Packet<T>{};
    }
  }
};

// ---- forward
template <typename T, int kPackets>
__device__ void add_rows(const RmsNormArgs& a, int64_t row, const Team& team,
                         RowPackets<T, kPackets>& x) {
  RowPackets<T, kPackets> added;
  added.load(a.added, row, a.columns, team);
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    float sum[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      sum[i] = __fadd_rn(x.packets[v].get(i), added.packets[v].get(i));
    }
    x.packets[v] = packed<T>(sum);
    const int64_t column = team.column_of(v);
    if (column >= a.columns) continue;
    store_packet(static_cast<T*>(a.sum) + row * a.columns + column, x.packets[v]);
  }
}

template <typename T, int kPackets>
__global__ void __launch_bounds__(kMostTeam)
    norm_rows(const __grid_constant__ Norm<RmsNormArgs> p) {
  follow_stream();
  const RmsNormArgs& a = p.args;
  const Team team(p.team_threads);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / p.team_threads) + team.index;
  if (row >= a.rows) return;  // all of the team
  RowPackets<T, kPackets> x;
  x.load(a.x, row, a.columns, team);
  if (a.added != nullptr) add_rows(a, row, team, x);
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      squares = __fmaf_rn(x.packets[v].get(i), x.packets[v].get(i), squares);
    }
  }
  const float rstd = inverse_root(team.sum(squares, 0), a.columns, a.eps);
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    const int64_t column = team.column_of(v);
    if (column >= a.columns) continue;
    const auto weight = load_shared_packet(static_cast<const T*>(a.weight) + column);
    float out[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      out[i] = __fmul_rn(__fmul_rn(x.packets[v].get(i), rstd), weight.get(i));
    }
    store_packet(static_cast<T*>(a.out) + row * a.columns + column, packed<T>(out));
  }
  if (team.thread == 0 && a.rstd != nullptr) a.rstd[row] = rstd;
}

// ---- backward
/// What a thread has of the weight's gradient.
template <int kPackets>
struct WeightShare {
  float sums[kPackets][kPacket] = {};

  /// Adds up those of the block's teams, the first before the second and so on.
  __device__ void store(float* part, int64_t columns, const Team& team, int teams) {
    __shared__ float shared[kMostShared];
    for (int turn = 0; turn < teams; ++turn) {
      if (turn > 0) __syncthreads();
      if (turn != team.index) continue;
      float* out = turn == teams - 1 ? part : shared;
#pragma unroll
      for (int v = 0; v < kPackets; ++v) {
        const int64_t column = team.column_of(v);
        if (column >= columns) continue;
#pragma unroll
        for (int i = 0; i < kPacket; i += 4) {
          float4 four = make_float4(sums[v][i], sums[v][i + 1], sums[v][i + 2], sums[v][i + 3]);
          if (turn > 0) {
            const float4 before = *reinterpret_cast<const float4*>(shared + column + i);
            four = make_float4(__fadd_rn(before.x, four.x), __fadd_rn(before.y, four.y),
                               __fadd_rn(before.z, four.z), __fadd_rn(before.w, four.w));
          }
          *reinterpret_cast<float4*>(out + column + i) = four;
        }
      }
    }
  }
};

// The row's gradient of h, and what it adds to the weight's.
template <typename T, int kPackets>
__device__ void differentiate_row(const RmsNormBackwardArgs& a, int64_t row, const Team& team,
                                  int turn, WeightShare<kPackets>& share) {
  RowPackets<T, kPackets> h, grad, other;
  h.load(a.h, row, a.columns, team);
  grad.load(a.grad, row, a.columns, team);
  if (a.grad_sum != nullptr) {
    other.load(a.grad_sum, row, a.columns, team);
  } else {
    other = {};
  }
  const T* weights = static_cast<const T*>(a.weight);
  float product = 0;
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    const int64_t column = team.column_of(v);
    if (column >= a.columns) continue;
    const Packet<T> weight = load_shared_packet(weights + column);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      const float g = __fmul_rn(grad.packets[v].get(i), weight.get(i));
      product = __fmaf_rn(g, h.packets[v].get(i), product);
    }
  }
  const NormGradient gradient(a.rstd[row], team.sum(product, turn), a.columns);
#pragma unroll
  for (int v = 0; v < kPackets; ++v) {
    const int64_t column = team.column_of(v);
    if (column >= a.columns) continue;
    const Packet<T> weight = load_shared_packet(weights + column);
    float out[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      const float x = h.packets[v].get(i), dy = grad.packets[v].get(i);
      out[i] = gradient.of_x(__fmul_rn(dy, weight.get(i)), x, other.packets[v].get(i));
      share.sums[v][i] = gradient.of_weight(dy, x, share.sums[v][i]);
    }
    store_packet(static_cast<T*>(a.grad_x) + row * a.columns + column, packed<T>(out));
  }
}

template <typename T, int kPackets>
__global__ void __launch_bounds__(kMostTeam)
    norm_rows_backward(const __grid_constant__ Norm<RmsNormBackwardArgs> p) {
  follow_stream();
  const RmsNormBackwardArgs& a = p.args;
  const Team team(p.team_threads);
  const int teams = static_cast<int>(blockDim.x) / p.team_threads;
  WeightShare<kPackets> share;
  int turn = 0;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * teams + team.index; row < a.rows;
       row += static_cast<int64_t>(gridDim.x) * teams, ++turn) {
    differentiate_row<T, kPackets>(a, row, team, turn, share);
  }
  share.store(a.workspace + static_cast<int64_t>(blockIdx.x) * a.columns, a.columns, team, teams);
}

// ---- launch
template <typename T>
auto forward_kernel(int packets) -> void (*)(Norm<RmsNormArgs>) {
  if (packets == 1) return norm_rows<T, 1>;
  if (packets == 2) return norm_rows<T, 2>;
  if constexpr (kMostPackets < T >> 2) return packets == 3 ? norm_rows<T, 3> : norm_rows<T, 4>;
  return nullptr;
}

template <typename T>
auto backward_kernel(int packets) -> void (*)(Norm<RmsNormBackwardArgs>) {
  if (packets == 1) return norm_rows_backward<T, 1>;
  if (packets == 2) return norm_rows_backward<T, 2>;
  if constexpr (kMostPackets < T >> 2) {
    return packets == 3 ? norm_rows_backward<T, 3> : norm_rows_backward<T, 4>;
  }
  return nullptr;
}

int64_t bytes_of(FloatType type) {
  return type == FloatType::BF16 ? 2 : 4;
}

TeamShape team_for(FloatType type, int64_t columns) {
  return type == FloatType::BF16 ? team_for(columns, kMostPackets<BFloat16>)
                                 : team_for(columns, kMostPackets<float>);
}

template <typename Pointers>
bool in_whole_packets(const Pointers& pointers, int64_t columns, FloatType type) {
  return columns % kPacket == 0 && std::all_of(pointers.begin(), pointers.end(), [&](auto* p) {
           return is_aligned(p, columns, bytes_of(type));
         });
}

TeamShape choose(const RmsNormArgs& a) {
  const std::initializer_list<const void*> pointers{a.x, a.added, a.sum, a.weight, a.out};
  return in_whole_packets(pointers, a.columns, a.type) ? team_for(a.type, a.columns)
                                                       : TeamShape{0, 0};
}

TeamShape choose(const RmsNormBackwardArgs& a) {
  const std::initializer_list<const void*> pointers{a.h,        a.weight, a.grad,
                                                    a.grad_sum, a.grad_x, a.workspace};
  return in_whole_packets(pointers, a.columns, a.type) ? team_for(a.type, a.columns)
                                                       : TeamShape{0, 0};
}

int64_t blocks_of(const RmsNormBackwardArgs& a, const TeamShape& team) {
  return std::min<int64_t>(kNormParts, ceil_div(a.rows, team.per_block()));
}

const char* refusal(int64_t rows, int64_t columns) {
  if (columns < 1) return "rows without columns";
  return rows > INT32_MAX ? "more rows than 31 bits count" : nullptr;
}

}  // namespace

LaunchStatus launch_rms_norm(const RmsNormArgs& a, cudaStream_t stream) {
  if (const char* why = refusal(a.rows, a.columns)) return refused(why);
  if ((a.added == nullptr) != (a.sum == nullptr)) return refused("a sum without its place");
  if (a.rows == 0) return {};
  const TeamShape team = choose(a);
  if (team.threads == 0) return launch_any_rms_norm(a, stream);
  const auto kernel = a.type == FloatType::BF16 ? forward_kernel<BFloat16>(team.packets)
                                                : forward_kernel<float>(team.packets);
  return launch_early(kernel, ceil_div(a.rows, team.per_block()), team.block(), 0, stream,
                      Norm<RmsNormArgs>{a, team.threads});
}

int64_t rms_norm_workspace(const RmsNormBackwardArgs& a) {
  return kNormParts * a.columns;
}

LaunchStatus launch_rms_norm_backward(const RmsNormBackwardArgs& a, cudaStream_t stream) {
  if (const char* why = refusal(a.rows, a.columns)) return refused(why);
  if (a.rows == 0) return launch_sum_of_parts(a, 0, stream);
  const TeamShape team = choose(a);
  if (team.threads == 0) {
    const LaunchStatus status = launch_any_rms_norm_backward(a, stream);
    return status.ok() ? launch_sum_of_parts(a, kNormParts, stream) : status;
  }
  const auto kernel = a.type == FloatType::BF16 ? backward_kernel<BFloat16>(team.packets)
                                                : backward_kernel<float>(team.packets);
  const int64_t blocks = blocks_of(a, team);
  const LaunchStatus status = launch_early(kernel, blocks, team.block(), 0, stream,
                                           Norm<RmsNormBackwardArgs>{a, team.threads});
  return status.ok() ? launch_sum_of_parts(a, blocks, stream) : status;
}

}  // namespace moe8::cuda
