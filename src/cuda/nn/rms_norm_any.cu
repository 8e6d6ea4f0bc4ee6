// SPDX-License-Identifier: BSD-3-Clause
// RMSNorm of rows of any width at any address, element by element, and the second stage of the
// weight's gradient, which every width shares.
#include "cuda/block_sum.cuh"
#include "cuda/launch.cuh"
#include "cuda/nn/rms_norm.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kColumns = 32;  // that a block of the second stage sums
constexpr int kStripes = 32;  // in which it takes the parts

// ---- forward: a block per row
template <typename T>
__global__ void __launch_bounds__(kThreads) norm_any(const __grid_constant__ RmsNormArgs a) {
  follow_stream();
  const int64_t row = blockIdx.x, start = row * a.columns;
  const T* x = static_cast<const T*>(a.x) + start;
  const T* added = static_cast<const T*>(a.added) + start;
  T* sum = static_cast<T*>(a.sum) + start;
  const auto h = [&](int64_t i) {
    return a.added == nullptr ? x[i] : rounded<T>(__fadd_rn(to_float(x[i]), to_float(added[i])));
  };
  float squares = 0;
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    const float value = to_float(h(i));
    squares = __fmaf_rn(value, value, squares);
  }
  const float rstd = inverse_root(block_sum<kThreads>(squares), a.columns, a.eps);
  const T* weight = static_cast<const T*>(a.weight);
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    const T value = h(i);
    if (a.added != nullptr) sum[i] = value;
    const float normed = __fmul_rn(to_float(value), rstd);
    static_cast<T*>(a.out)[start + i] = rounded<T>(__fmul_rn(normed, to_float(weight[i])));
  }
  if (threadIdx.x == 0 && a.rstd != nullptr) a.rstd[row] = rstd;
}

// ---- backward
template <typename T>
__global__ void __launch_bounds__(kThreads)
    norm_any_backward(const __grid_constant__ RmsNormBackwardArgs a) {
  follow_stream();
  const int64_t row = blockIdx.x, start = row * a.columns;
  const T* h = static_cast<const T*>(a.h) + start;
  const T* grad = static_cast<const T*>(a.grad) + start;
  const T* weight = static_cast<const T*>(a.weight);
  const auto g = [&](int64_t i) { return __fmul_rn(to_float(grad[i]), to_float(weight[i])); };
  float product = 0;
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    product = __fmaf_rn(g(i), to_float(h[i]), product);
  }
  const NormGradient gradient(a.rstd[row], block_sum<kThreads>(product), a.columns);
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    const float other =
        a.grad_sum == nullptr ? 0.0f : to_float(static_cast<const T*>(a.grad_sum)[start + i]);
    static_cast<T*>(a.grad_x)[start + i] = rounded<T>(gradient.of_x(g(i), to_float(h[i]), other));
  }
}

// A thread sums a column over the rows of a part.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    weight_parts_any(const __grid_constant__ RmsNormBackwardArgs a) {
  follow_stream();
  const int64_t part = blockIdx.x % kNormParts;
  const int64_t column = blockIdx.x / kNormParts * kThreads + threadIdx.x;
  if (column >= a.columns) return;
  float sum = 0;
  for (int64_t row = part; row < a.rows; row += kNormParts) {
    const int64_t i = row * a.columns + column;
    const float normed = __fmul_rn(to_float(static_cast<const T*>(a.h)[i]), a.rstd[row]);
    sum = __fmaf_rn(to_float(static_cast<const T*>(a.grad)[i]), normed, sum);
  }
  a.workspace[part * a.columns + column] = sum;
}

// ---- second stage
template <typename T>
__global__ void __launch_bounds__(kColumns* kStripes)
    sum_parts(const __grid_constant__ RmsNormBackwardArgs a, int64_t parts) {
  follow_stream();
  __shared__ float shared[kStripes][kColumns];
  const int lane = static_cast<int>(threadIdx.x) % kColumns;
  const int stripe = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + lane;
  float sum = 0;
  if (column < a.columns) {
#pragma unroll 8
    for (int64_t part = stripe; part < parts; part += kStripes) {
      sum = __fadd_rn(sum, a.workspace[part * a.columns + column]);
    }
  }
  shared[stripe][lane] = sum;
  __syncthreads();
  if (stripe != 0 || column >= a.columns) return;
  for (int other = 1; other < kStripes; ++other) sum = __fadd_rn(sum, shared[other][lane]);
  static_cast<T*>(a.grad_weight)[column] = rounded<T>(sum);
}

template <typename T>
LaunchStatus launch_backward(const RmsNormBackwardArgs& a, cudaStream_t stream) {
  const LaunchStatus of_x = launch_early(norm_any_backward<T>, a.rows, kThreads, 0, stream, a);
  if (!of_x.ok()) return of_x;
  return launch_early(weight_parts_any<T>, ceil_div(a.columns, kThreads) * kNormParts, kThreads, 0,
                      stream, a);
}

}  // namespace

LaunchStatus launch_any_rms_norm(const RmsNormArgs& a, cudaStream_t stream) {
  const auto kernel = a.type == FloatType::BF16 ? norm_any<BFloat16> : norm_any<float>;
  return launch_early(kernel, a.rows, kThreads, 0, stream, a);
}

LaunchStatus launch_any_rms_norm_backward(const RmsNormBackwardArgs& a, cudaStream_t stream) {
  return a.type == FloatType::BF16 ? launch_backward<BFloat16>(a, stream)
                                   : launch_backward<float>(a, stream);
}

LaunchStatus launch_sum_of_parts(const RmsNormBackwardArgs& a, int64_t parts, cudaStream_t stream) {
  const auto kernel = a.type == FloatType::BF16 ? sum_parts<BFloat16> : sum_parts<float>;
  return launch_early(kernel, ceil_div(a.columns, kColumns), kColumns * kStripes, 0, stream, a,
                      parts);
}

}  // namespace moe8::cuda
