// SPDX-License-Identifier: BSD-3-Clause
// Squares are added by a block per run of elements, then the sums of runs by one block, always in
// the same order. Cost floor: each gradient is read once.
#include "cuda/launch.cuh"
#include "cuda/optim/gradients.h"
#include "cuda/optim/tensor_table.cuh"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int64_t kSumRun = 16384;  // elements of a block that adds gradients
constexpr int kWarps = kTableThreads / 32;
static_assert(kNormLanes == kTableStep, "a thread has eight neighbouring lanes");
constexpr int kSumThreads = static_cast<int>(kNormSumLanes);

struct NormEntry {
  const void* data;
  int64_t elements;
  int32_t first_block;
  bool is_bf16;
  bool aligned;
};

struct NormParams {
  float* sums;
  TensorTable<NormEntry> table;
};

struct SumEntry {
  const void* a;
  const void* b;
  float* out;
  int64_t elements;
  int32_t first_block;
  bool a_is_bf16, b_is_bf16;
  bool aligned;
};

struct SumParams {
  TensorTable<SumEntry> table;
};

// ---- device helpers
// Neighbouring threads first: all of them have the sum.
template <typename T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    x += __shfl_xor_sync(~0u, x, distance);
  }
  return x;
}

template <typename T>
__device__ void add_squares(float (&lanes)[8], const NormEntry& e, int64_t begin, int64_t end) {
  for (int64_t at = begin + threadIdx.x * 8; at < end; at += kTableStep) {
    const Packet<T> x = load_some<T>(e.data, at, e.elements - at, e.aligned);
#pragma unroll
    for (int i = 0; i < 8; ++i) lanes[i] = fmaf(x.get(i), x.get(i), lanes[i]);
  }
}

__device__ Packet<float> load_float(const void* x, bool is_bf16, int64_t at, int64_t left,
                                    bool aligned) {
  if (!is_bf16) return load_some<float>(x, at, left, aligned);
  const Packet<BFloat16> packet = load_some<BFloat16>(x, at, left, aligned);
  Packet<float> wide;
#pragma unroll
  for (int i = 0; i < 8; ++i) wide.words[i] = __float_as_uint(packet.get(i));
  return wide;
}

// ---- kernels
__global__ void __launch_bounds__(kTableThreads) sum_squares(const __grid_constant__ NormParams p) {
  follow_stream();
  const int block = static_cast<int>(blockIdx.x);
  const NormEntry& e = p.table.entry_of(block);
  const int64_t begin = (block - e.first_block) * kNormChunk;
  const int64_t end = min(begin + kNormChunk, e.elements);
  float a[8] = {};
  e.is_bf16 ? add_squares<BFloat16>(a, e, begin, end) : add_squares<float>(a, e, begin, end);
  const float sum = warp_sum(((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])));
  __shared__ float of_warp[kWarps];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  const float* w = of_warp;
  static_assert(kWarps == 8);
  p.sums[block] = ((w[0] + w[1]) + (w[2] + w[3])) + ((w[4] + w[5]) + (w[6] + w[7]));
}

__global__ void __launch_bounds__(kSumThreads)
    norm_of_sums(const float* sums, int64_t count, float* norm) {
  follow_stream();
  double lane = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) lane += double(__ldcg(sums + i));
  const double sum = warp_sum(lane);
  static_assert(kSumThreads == 32 * 32);
  __shared__ double of_warp[32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const double total = warp_sum(of_warp[threadIdx.x]);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(total));
}

__global__ void __launch_bounds__(kTableThreads)
    add_gradients(const __grid_constant__ SumParams p) {
  follow_stream();
  const int block = static_cast<int>(blockIdx.x);
  const SumEntry& e = p.table.entry_of(block);
  const int64_t begin = (block - e.first_block) * kSumRun;
  const int64_t end = min(begin + kSumRun, e.elements);
  for (int64_t at = begin + threadIdx.x * 8; at < end; at += kTableStep) {
    const int64_t left = e.elements - at;
    Packet<float> sum = load_float(e.a, e.a_is_bf16, at, left, e.aligned);
    const Packet<float> b = load_float(e.b, e.b_is_bf16, at, left, e.aligned);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.words[i] = __float_as_uint(sum.get(i) + b.get(i));
    store_some(e.out, sum, at, left, e.aligned);
  }
}

}  // namespace

// ---- launch
int64_t gradient_norm_sums(std::span<const Gradient> gradients) {
  int64_t count = 0;
  for (const Gradient& g : gradients) count += ceil_div(g.elements, kNormChunk);
  return count;
}

LaunchStatus launch_gradient_squares(std::span<const Gradient> gradients, float* sums,
                                     cudaStream_t stream) {
  NormParams p{.sums = sums, .table = {}};
  const auto flush = [&]() -> LaunchStatus {
    if (p.table.blocks == 0) return {};
    const LaunchStatus status =
        launch_early(sum_squares, p.table.blocks, kTableThreads, 0, stream, p);
    p.sums += p.table.blocks;
    p.table.count = p.table.blocks = 0;
    return status;
  };
  for (const Gradient& g : gradients) {
    if (g.elements == 0) continue;
    p.table.add({g.data, g.elements, 0, g.type == FloatType::BF16, starts_aligned(g.data)},
                kNormChunk);
    if (!p.table.is_full()) continue;
    if (const LaunchStatus status = flush(); !status.ok()) return status;
  }
  return flush();
}

LaunchStatus launch_norm_of_squares(const float* sums, int64_t count, float* norm,
                                    cudaStream_t stream) {
  return launch_early(norm_of_sums, 1, kSumThreads, 0, stream, sums, count, norm);
}

LaunchStatus launch_gradient_norm(std::span<const Gradient> gradients, float* sums, float* norm,
                                  cudaStream_t stream) {
  const LaunchStatus status = launch_gradient_squares(gradients, sums, stream);
  if (!status.ok()) return status;
  return launch_norm_of_squares(sums, gradient_norm_sums(gradients), norm, stream);
}

LaunchStatus launch_gradient_sums(std::span<const GradientSum> sums, cudaStream_t stream) {
  SumParams p;
  const auto flush = [&]() -> LaunchStatus {
    if (p.table.blocks == 0) return {};
    const LaunchStatus status =
        launch_early(add_gradients, p.table.blocks, kTableThreads, 0, stream, p);
    p.table.count = p.table.blocks = 0;
    return status;
  };
  for (const GradientSum& s : sums) {
    if (s.elements == 0) continue;
    p.table.add(
        {s.a, s.b, s.out, s.elements, 0, s.a_type == FloatType::BF16, s.b_type == FloatType::BF16,
         starts_aligned(s.a) && starts_aligned(s.b) && starts_aligned(s.out)},
        kSumRun);
    if (!p.table.is_full()) continue;
    if (const LaunchStatus status = flush(); !status.ok()) return status;
  }
  return flush();
}

}  // namespace moe8::cuda
