// SPDX-License-Identifier: BSD-3-Clause
// The arithmetic of a router. A warp has a token, a lane every 32nd of its experts and one of its
// choices. Floor: one read of the logits, and in backward a write as large.
#include <algorithm>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/nn/packets.cuh"
#include "cuda/nn/route.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAll = ~0u;
constexpr float kLeastSum = 1e-20f;  // keeps scores that all are 0 from becoming NaN

__device__ float sum_of_warp(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

/// The scores of a token's experts, as they lie in a warp: expert lane + 32 i in x[i].
template <int kPerLane>
struct Scores {
  float x[kPerLane];
  int lane, experts;

  __device__ int expert(int i) const { return lane + kWarp * i; }
  __device__ bool has(int i) const { return expert(i) < experts; }

  template <typename T>
  __device__ Scores(const T* logits, int lane, int experts, ScoreFunction function)
      : lane(lane), experts(experts) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) x[i] = has(i) ? to_float(logits[expert(i)]) : -INFINITY;
    function == ScoreFunction::SIGMOID ? sigmoid() : softmax();
  }

  /// That of any expert, to all lanes.
  __device__ float of(int wanted) const {
    float mine = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (i == wanted / kWarp) mine = x[i];
    }
    return __shfl_sync(kAll, mine, wanted % kWarp);
  }

 private:
  __device__ void sigmoid() {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) x[i] = 1.0f / (1.0f + expf(-x[i]));
  }
  __device__ void softmax() {
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) most = fmaxf(most, x[i]);
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      x[i] = has(i) ? expf(x[i] - most) : 0.0f;
      sum += x[i];
    }
    sum = sum_of_warp(sum);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) x[i] /= sum;
  }
};

/// Grows with x; NaN is the largest, 0 is below all numbers.
__device__ uint32_t rank_of(float x) {
  if (isnan(x)) return ~0u;
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// Takes the best expert that was not taken; all lanes get it.
template <int kPerLane>
__device__ int take_best(uint32_t (&rank)[kPerLane], int lane) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) most = max(most, rank[i]);
  most = __reduce_max_sync(kAll, most);
  unsigned first = ~0u;
#pragma unroll
  for (int i = kPerLane - 1; i >= 0; --i) {
    if (rank[i] == most) first = lane + kWarp * i;
  }
  first = __reduce_min_sync(kAll, first);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (first == static_cast<unsigned>(lane + kWarp * i)) rank[i] = 0;
  }
  return static_cast<int>(first);
}

/// The sum of what the first `count` lanes have, in their order.
__device__ float sum_in_order(float x, int count) {
  float sum = 0;
  for (int j = 0; j < count; ++j) sum += __shfl_sync(kAll, x, j);
  return sum;
}

/// The token of this warp.
__device__ int64_t token_of_warp() {
  return (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
}

template <typename T, int kPerLane>
__global__ void __launch_bounds__(kThreads) route_rows(const __grid_constant__ RouteArgs a) {
  follow_stream();
  const int64_t token = token_of_warp();
  if (token >= a.tokens) return;
  const int lane = threadIdx.x % kWarp;
  const int experts = static_cast<int>(a.experts), k = static_cast<int>(a.top_k);
  const Scores<kPerLane> p(static_cast<const T*>(a.logits) + token * experts, lane, experts,
                           a.score_function);
  uint32_t rank[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float bias = a.bias != nullptr && p.has(i) ? a.bias[p.expert(i)] : 0.0f;
    rank[i] = p.has(i) ? rank_of(p.x[i] + bias) : 0;
  }
  int chosen = 0;  // of this lane
  float score = 0;
  for (int j = 0; j < k; ++j) {
    const int best = take_best(rank, lane);
    const float of_best = p.of(best);
    if (lane == j) chosen = best, score = of_best;
  }
  if (a.normalize) score /= sum_in_order(score, k) + kLeastSum;
  if (lane >= k) return;
  a.chosen[token * k + lane] = chosen;
  a.scores[token * k + lane] = score * a.scale;
}

template <typename T, int kPerLane>
__global__ void __launch_bounds__(kThreads)
    route_rows_backward(const __grid_constant__ RouteBackwardArgs a) {
  follow_stream();
  const int64_t token = token_of_warp();
  if (token >= a.tokens) return;
  const int lane = threadIdx.x % kWarp;
  const int experts = static_cast<int>(a.experts), k = static_cast<int>(a.top_k);
  const Scores<kPerLane> p(static_cast<const T*>(a.logits) + token * experts, lane, experts,
                           a.score_function);
  const bool chooses = lane < k;
  const int chosen = chooses ? static_cast<int>(a.chosen[token * k + lane]) : 0;
  const float grad = chooses ? a.grad[token * k + lane] * a.scale : 0.0f;
  float score = 0;
  for (int j = 0; j < k; ++j) {
    const float of_choice = p.of(__shfl_sync(kAll, chosen, j));
    if (lane == j) score = of_choice;
  }
  float by_score = grad;  // the gradient of this lane's choice of p
  if (a.normalize) {
    const float sum = sum_in_order(score, k) + kLeastSum;
    by_score = (grad - sum_in_order(grad * score, k) / sum) / sum;
  }
  const float mean = sum_in_order(chooses ? by_score * score : 0.0f, k);
  float out[kPerLane] = {};
  for (int j = 0; j < k; ++j) {
    const int expert = __shfl_sync(kAll, chosen, j);
    const float d = __shfl_sync(kAll, by_score, j);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (expert == p.expert(i)) out[i] = d;
    }
  }
  T* to = static_cast<T*>(a.grad_logits) + token * experts;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float d = a.score_function == ScoreFunction::SIGMOID ? out[i] * (p.x[i] * (1.0f - p.x[i]))
                                                               : p.x[i] * (out[i] - mean);
    if (p.has(i)) to[p.expert(i)] = rounded<T>(d);
  }
}

template <typename Args>
LaunchStatus launch_warps(void (*of_bf16)(Args), void (*of_float)(Args), const Args& a,
                          cudaStream_t stream) {
  return launch_early(a.type == FloatType::BF16 ? of_bf16 : of_float,
                      ceil_div(a.tokens * kWarp, kThreads), kThreads, 0, stream, a);
}

const char* refusal(const RouteInputs& a) {
  if (a.experts < 1 || a.experts > kMostRoutedExperts) return "1 to 512 experts";
  if (a.top_k < 1 || a.top_k > std::min(a.experts, kMostChosen)) return "1 to 32 choices";
  return a.tokens > INT32_MAX ? "fewer than 2^31 tokens" : nullptr;
}

/// Calls launch(kPerLane) as a constant: the least power of two that holds the experts.
template <typename Launch>
LaunchStatus for_experts(int64_t experts, Launch launch) {
  if (experts <= 1 * kWarp) return launch(std::integral_constant<int, 1>());
  if (experts <= 2 * kWarp) return launch(std::integral_constant<int, 2>());
  if (experts <= 4 * kWarp) return launch(std::integral_constant<int, 4>());
  if (experts <= 8 * kWarp) return launch(std::integral_constant<int, 8>());
  return launch(std::integral_constant<int, 16>());
}

}  // namespace

LaunchStatus launch_route(const RouteArgs& args, cudaStream_t stream) {
  if (const char* why = refusal(args)) return refused(why);
  if (args.tokens == 0) return {};
  return for_experts(args.experts, [&](auto per_lane) {
    return launch_warps(route_rows<BFloat16, per_lane>, route_rows<float, per_lane>, args, stream);
  });
}

LaunchStatus launch_route_backward(const RouteBackwardArgs& args, cudaStream_t stream) {
  if (const char* why = refusal(args)) return refused(why);
  if (args.tokens == 0) return {};
  return for_experts(args.experts, [&](auto per_lane) {
    return launch_warps(route_rows_backward<BFloat16, per_lane>,
                        route_rows_backward<float, per_lane>, args, stream);
  });
}

}  // namespace moe8::cuda
