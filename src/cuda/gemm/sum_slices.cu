// SPDX-License-Identifier: BSD-3-Clause
// Adds what the slices of a contraction gave. Floor: one read of all parts, which the L2 still
// holds, and one write of out.
#include <cuda_bf16.h>

#include <algorithm>

#include "cuda/gemm/sum_slices.h"
#include "cuda/launch.cuh"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;

template <int kWidth>
struct alignas(kWidth * sizeof(float)) Packet {
  float values[kWidth];
};

template <int kWidth>
__device__ void store(float* out, const Packet<kWidth>& x) {
  *reinterpret_cast<Packet<kWidth>*>(out) = x;
}

template <int kWidth>
__device__ void store(__nv_bfloat16* out, const Packet<kWidth>& x) {
  struct alignas(kWidth * sizeof(__nv_bfloat16)) Rounded {
    __nv_bfloat16 values[kWidth];
  } rounded;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) rounded.values[i] = __float2bfloat16(x.values[i]);
  *reinterpret_cast<Rounded*>(out) = rounded;
}

/// A thread adds kWidth neighbours. kAdds: to what is there.
template <int kWidth, typename Out, bool kAdds>
__global__ void __launch_bounds__(kThreads)
    sum_slices_kernel(const Packet<kWidth>* partial, int slices, int64_t rows, int64_t packets,
                      Out* out, int64_t pitch) {
  follow_stream();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t count = rows * packets;
  if (i >= count) return;
  Packet<kWidth> sum = partial[i];
#pragma unroll 4
  for (int slice = 1; slice < slices; ++slice) {
    const Packet<kWidth> part = partial[slice * count + i];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum.values[j] += part.values[j];
  }
  Out* const to = out + i / packets * pitch + i % packets * kWidth;
  if constexpr (kAdds) {
    const Packet<kWidth> before = *reinterpret_cast<const Packet<kWidth>*>(to);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum.values[j] = before.values[j] + sum.values[j];
  }
  store(to, sum);
}

template <int kWidth, typename Out, bool kAdds>
LaunchStatus launch_packets(const SumSlicesArgs& a) {
  const int64_t packets = a.cols / kWidth;
  const int64_t blocks = (a.rows * packets + kThreads - 1) / kThreads;
  if (blocks == 0) return {};
  return launch_early(sum_slices_kernel<kWidth, Out, kAdds>, blocks, kThreads, 0, a.stream,
                      reinterpret_cast<const Packet<kWidth>*>(a.partial), a.slices, a.rows, packets,
                      static_cast<Out*>(a.out), a.out_pitch);
}

template <typename Out, bool kAdds>
LaunchStatus launch(const SumSlicesArgs& a) {
  constexpr int kWidth = 4;
  const bool whole = a.cols % kWidth == 0 && a.out_pitch % kWidth == 0 &&
                     reinterpret_cast<uintptr_t>(a.out) % (kWidth * sizeof(Out)) == 0;
  return whole ? launch_packets<kWidth, Out, kAdds>(a) : launch_packets<1, Out, kAdds>(a);
}

}  // namespace

LaunchStatus launch_sum_slices(const SumSlicesArgs& args) {
  if (args.adds) return launch<float, true>(args);
  return args.output == FloatType::BF16 ? launch<__nv_bfloat16, false>(args)
                                        : launch<float, false>(args);
}

}  // namespace moe8::cuda
