// SPDX-License-Identifier: BSD-3-Clause
// The loss of logits. A row belongs to a warp, long ones to a block. Its threads take packets in
// turn and keep the largest logit and the sum of exponentials below it as they go, so that the row
// is read once. Rows may begin at any address: what lies before the first boundary and after the
// last packet is read element by element.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/nn/cross_entropy.h"
#include "cuda/nn/packets.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kBlock = 512;     // threads
constexpr int kLongRow = 4096;  // from so many columns on a block takes a row
constexpr int kMeanThreads = 1024;
constexpr float kLog2E = 1.44269504f;

// ---- a row and its threads
// Long rows begin their packets where a cache line begins, short ones as soon as they can.
template <typename T, int kThreads>
struct Row {
  static constexpr int64_t kBoundary = kThreads > 32 ? 128 : 16;  // bytes

  int64_t columns;
  int64_t head;  // elements before the first packet
  int64_t packets;

  __device__ Row(const T* first, int64_t n) : columns(n) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(first) % kBoundary);
    head = min(columns, (kBoundary - past) % kBoundary / static_cast<int64_t>(sizeof(T)));
    packets = (columns - head) / kPacket;
  }
  __device__ int64_t column_of(int64_t packet) const { return head + packet * kPacket; }
  /// The elements that are in no packet, counted through.
  __device__ int64_t singles() const { return columns - packets * kPacket; }
  __device__ int64_t column_of_single(int64_t i) const {
    return i < head ? i : i + packets * kPacket;
  }
};

/// The row of this thread, and its number among the kThreads of the row.
template <int kThreads>
struct Worker {
  int64_t row;
  int thread;

  __device__ Worker()
      : row(static_cast<int64_t>(blockIdx.x) * (kBlock / kThreads) + threadIdx.x / kThreads),
        thread(threadIdx.x % kThreads) {}
};

__device__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// exp(x - base)
__device__ float exp_below(float x, float base) {
  return exp2_of(__fmul_rn(__fsub_rn(x, base), kLog2E));
}

/// The largest of some numbers and the sum of exp(x - largest).
struct LogSum {
  float largest = -HUGE_VALF;
  float sum = 0.0f;

  __device__ void raise_to(float x) {
    if (!(x > largest)) return;
    sum = __fmul_rn(sum, exp_below(largest, x));
    largest = x;
  }
  /// Where all have been -Inf so far, no difference to the largest exists.
  __device__ float base() const { return largest == -HUGE_VALF ? 0.0f : largest; }

  __device__ void add(float x) {
    raise_to(x);
    sum = __fadd_rn(sum, exp_below(x, base()));
  }
  /// `largest` has been raised already.
  template <typename P>
  __device__ void add_packet(const P& x) {
    float e[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) e[i] = exp_below(x.get(i), base());
#pragma unroll
    for (int step = 1; step < kPacket; step *= 2) {
#pragma unroll
      for (int i = 0; i < kPacket; i += 2 * step) e[i] = __fadd_rn(e[i], e[i + step]);
    }
    sum = __fadd_rn(sum, e[0]);
  }
  __device__ void merge(const LogSum& other) {
    const float top = fmaxf(largest, other.largest);
    if (top == -HUGE_VALF) {  // sums are 0, or NaN
      sum = __fadd_rn(sum, other.sum);
      return;
    }
    sum = __fadd_rn(__fmul_rn(sum, exp_below(largest, top)),
                    __fmul_rn(other.sum, exp_below(other.largest, top)));
    largest = top;
  }
};

template <typename P>
__device__ float largest_of(const P& x) {
  float top = x.get(0);
#pragma unroll
  for (int i = 1; i < kPacket; ++i) top = fmaxf(top, x.get(i));
  return top;
}

template <typename T, int kThreads>
__device__ LogSum sum_own(const T* x, const Row<T, kThreads>& row, int thread) {
  constexpr int kAtOnce = sizeof(T) == 2 ? 4 : 2;
  LogSum own;
  int64_t p = thread;
  for (; p + (kAtOnce - 1) * kThreads < row.packets; p += kAtOnce * kThreads) {
    Packet<T> packets[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) packets[i] = load_packet(x + row.column_of(p + i * kThreads));
    float top = largest_of(packets[0]);
#pragma unroll
    for (int i = 1; i < kAtOnce; ++i) top = fmaxf(top, largest_of(packets[i]));
    own.raise_to(top);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) own.add_packet(packets[i]);
  }
  for (; p < row.packets; p += kThreads) {
    const Packet<T> packet = load_packet(x + row.column_of(p));
    own.raise_to(largest_of(packet));
    own.add_packet(packet);
  }
  for (int64_t i = thread; i < row.singles(); i += kThreads) {
    own.add(to_float(x[row.column_of_single(i)]));
  }
  return own;
}

/// That of all threads of a row, in each of them alike.
template <int kThreads>
__device__ LogSum sum_all(LogSum own) {
  for (int step = 16; step > 0; step /= 2) {
    own.merge({__shfl_xor_sync(~0u, own.largest, step), __shfl_xor_sync(~0u, own.sum, step)});
  }
  if constexpr (kThreads > 32) {
    __shared__ float largest[kThreads / 32], sums[kThreads / 32];
    if (threadIdx.x % 32 == 0) {
      largest[threadIdx.x / 32] = own.largest;
      sums[threadIdx.x / 32] = own.sum;
    }
    __syncthreads();
    own = {largest[0], sums[0]};
    for (int warp = 1; warp < kThreads / 32; ++warp) own.merge({largest[warp], sums[warp]});
  }
  return own;
}

// ---- forward
template <typename T, int kThreads>
__global__ void __launch_bounds__(kBlock) sum_rows(const __grid_constant__ CrossEntropyArgs a) {
  follow_stream();
  const Worker<kThreads> at;
  if (at.row >= a.rows) return;  // all threads of the row
  const T* x = static_cast<const T*>(a.logits) + at.row * a.columns;
  const LogSum all =
      sum_all<kThreads>(sum_own<T, kThreads>(x, Row<T, kThreads>(x, a.columns), at.thread));
  if (at.thread != 0) return;
  const float lse = __fadd_rn(all.largest, logf(all.sum));
  const int64_t target = a.targets[at.row];
  float loss = 0;
  if (target != a.ignored) {
    const bool exists = target >= 0 && target < a.columns;
    loss = exists ? __fsub_rn(lse, to_float(x[target])) : NAN;
  }
  a.lse[at.row] = lse;
  a.row_loss[at.row] = loss;
}

/// Of a block, always in the same order; in its first thread.
template <typename Number>
__device__ Number block_sum(Number value) {
  __shared__ Number shared[kMeanThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  value = shared[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  return value;
}

__global__ void __launch_bounds__(kMeanThreads)
    average_losses(const __grid_constant__ CrossEntropyArgs a) {
  follow_stream();
  double sum = 0;
  int64_t count = 0;
#pragma unroll 4
  for (int64_t row = threadIdx.x; row < a.rows; row += kMeanThreads) {
    sum += static_cast<double>(a.row_loss[row]);
    count += a.targets[row] != a.ignored;
  }
  sum = block_sum(sum);
  count = block_sum(count);
  if (threadIdx.x != 0) return;
  if (a.count_rows) *a.divisor = static_cast<float>(count);
  *a.loss = static_cast<float>(sum / static_cast<double>(*a.divisor));
}

// ---- backward
/// What becomes of the logits of a row.
struct RowGradient {
  float lse;
  float scale;
  int64_t target;

  __device__ float of(float x, bool is_target) const {
    const float p = exp_below(x, lse);
    return __fmul_rn(is_target ? __fsub_rn(p, 1.0f) : p, scale);
  }
};

template <typename T>
__device__ Packet<T> gradient_of(const Packet<T>& x, const RowGradient& g, int64_t column) {
  float grad[kPacket];
  const int64_t target = g.target - column;
  if (target >= 0 && target < kPacket) {
#pragma unroll
    for (int i = 0; i < kPacket; ++i) grad[i] = g.of(x.get(i), i == target);
  } else {
#pragma unroll
    for (int i = 0; i < kPacket; ++i) grad[i] = g.of(x.get(i), false);
  }
  return packed<T>(grad);
}

template <typename T, int kThreads>
__device__ void store_gradients(const T* x, T* out, const Row<T, kThreads>& row,
                                const RowGradient& g, int thread) {
  constexpr int kAtOnce = sizeof(T) == 2 ? 4 : 2;
  int64_t p = thread;
  for (; p + (kAtOnce - 1) * kThreads < row.packets; p += kAtOnce * kThreads) {
    Packet<T> packets[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) packets[i] = load_packet(x + row.column_of(p + i * kThreads));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t column = row.column_of(p + i * kThreads);
      store_packet(out + column, gradient_of(packets[i], g, column));
    }
  }
  for (; p < row.packets; p += kThreads) {
    const int64_t column = row.column_of(p);
    store_packet(out + column, gradient_of(load_packet(x + column), g, column));
  }
  for (int64_t i = thread; i < row.singles(); i += kThreads) {
    const int64_t column = row.column_of_single(i);
    out[column] = rounded<T>(g.of(to_float(x[column]), column == g.target));
  }
}

template <typename T, int kThreads>
__device__ void store_zeros(T* out, const Row<T, kThreads>& row, int thread) {
  for (int64_t p = thread; p < row.packets; p += kThreads) {
    store_packet(out + row.column_of(p), Packet<T>{});
  }
  for (int64_t i = thread; i < row.singles(); i += kThreads) out[row.column_of_single(i)] = T{};
}

// Logits and gradient begin at the same distance from a 16-byte boundary.
template <typename T, int kThreads>
__global__ void __launch_bounds__(kBlock)
    differentiate_rows(const __grid_constant__ CrossEntropyBackwardArgs a) {
  follow_stream();
  const Worker<kThreads> at;
  if (at.row >= a.rows) return;
  const T* x = static_cast<const T*>(a.logits) + at.row * a.columns;
  T* out = static_cast<T*>(a.grad) + at.row * a.columns;
  const Row<T, kThreads> row(x, a.columns);
  const int64_t target = a.targets[at.row];
  if (target == a.ignored) {
    store_zeros<T, kThreads>(out, row, at.thread);
    return;
  }
  const bool exists = target >= 0 && target < a.columns;
  const float scale = exists ? __fdiv_rn(*a.grad_loss, *a.divisor) : NAN;
  store_gradients<T, kThreads>(x, out, row, {a.lse[at.row], scale, target}, at.thread);
}

// ---- launch
bool has_long_rows(const CrossEntropyRows& a) {
  return a.columns >= kLongRow;
}

int64_t blocks_of(const CrossEntropyRows& a) {
  return has_long_rows(a) ? a.rows : ceil_div(a.rows, kBlock / 32);
}

template <typename T>
LaunchStatus launch(const CrossEntropyArgs& a, cudaStream_t stream) {
  const auto kernel = has_long_rows(a) ? sum_rows<T, kBlock> : sum_rows<T, 32>;
  return launch_early(kernel, blocks_of(a), kBlock, 0, stream, a);
}

template <typename T>
LaunchStatus launch(const CrossEntropyBackwardArgs& a, cudaStream_t stream) {
  const auto kernel = has_long_rows(a) ? differentiate_rows<T, kBlock> : differentiate_rows<T, 32>;
  return launch_early(kernel, blocks_of(a), kBlock, 0, stream, a);
}

const char* refusal(const CrossEntropyRows& a) {
  if (a.columns < 1) return "rows without logits";
  return a.rows > INT32_MAX ? "more rows than 31 bits count" : nullptr;
}

}  // namespace

LaunchStatus launch_cross_entropy(const CrossEntropyArgs& a, cudaStream_t stream) {
  if (const char* why = refusal(a)) return refused(why);
  if (a.rows > 0) {
    const LaunchStatus status =
        a.type == FloatType::BF16 ? launch<BFloat16>(a, stream) : launch<float>(a, stream);
    if (!status.ok()) return status;
  }
  return launch_early(average_losses, 1, kMeanThreads, 0, stream, a);
}

LaunchStatus launch_cross_entropy_backward(const CrossEntropyBackwardArgs& a, cudaStream_t stream) {
  if (const char* why = refusal(a)) return refused(why);
  const auto place = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
  if (place(a.logits) != place(a.grad)) return refused("a gradient aligned unlike its logits");
  if (a.rows == 0) return {};
  return a.type == FloatType::BF16 ? launch<BFloat16>(a, stream) : launch<float>(a, stream);
}

}  // namespace moe8::cuda
