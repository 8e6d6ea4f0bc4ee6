// SPDX-License-Identifier: BSD-3-Clause
// FP8 with one scale for a whole tensor: its amax, then the cast. Cost floor: 2 bytes an element
// (bf16) for the amax, 3 for the cast.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/quantize/clear.h"
#include "cuda/quantize/float8.cuh"
#include "cuda/quantize/float8.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 256;
constexpr int kPackets = 4;                            // a thread has in flight
constexpr int64_t kAmaxBlocks = 8;                     // of a multiprocessor: all that it holds
constexpr int64_t kSegment = kThreads * kPackets * 8;  // elements of a row that a block casts

// ---- kernels
template <typename T>
__global__ void __launch_bounds__(kThreads)
    find_amax(const T* x, int64_t packets, int64_t count, uint32_t* amax) {
  follow_stream();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  Packet<T> largest{};
  int64_t i = thread;
  for (; i + (kPackets - 1) * step < packets; i += kPackets * step) {
    Packet<T> p[kPackets];
#pragma unroll
    for (int k = 0; k < kPackets; ++k) p[k] = load_packet(x + (i + k * step) * 8);
#pragma unroll
    for (int k = 0; k < kPackets; ++k) update_magnitudes(largest, p[k]);
  }
  for (; i < packets; i += step) update_magnitudes(largest, load_packet(x + i * 8));
  uint32_t value = largest_magnitude(largest);
  for (i = packets * 8 + thread; i < count; i += step) value = max(value, magnitude_bits(x[i]));

  value = __reduce_max_sync(~0u, value);
  if (threadIdx.x % 32 == 0 && value != 0) atomicMax(amax, value);
}

template <typename T, ElemDtype elem>
__global__ void __launch_bounds__(kThreads) cast(const __grid_constant__ Float8TensorArgs a) {
  follow_stream();
  const int64_t segments = max((a.pitch + kSegment - 1) / kSegment, int64_t{1});
  const int64_t row = blockIdx.x / segments;
  const int64_t first = blockIdx.x % segments * kSegment + threadIdx.x * 8;
  const T* x = static_cast<const T*>(a.x) + row * a.columns;
  const bool aligned =
      a.columns * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
  const float scale = scale_of<elem>(*a.amax, a.round_scales_to_power_of_2);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    if (a.scale != nullptr) *a.scale = scale;
    *a.inverse_scale = inverse_of(scale);
  }
  if (row >= a.groups.rows) return;
  Packet<T> p[kPackets];
#pragma unroll
  for (int k = 0; k < kPackets; ++k) {
    const int64_t column = first + k * kThreads * 8;
    p[k] = aligned && column + 8 <= a.columns ? load_packet(x + column)
                                              : load_elements(x + column, a.columns - column);
  }
#pragma unroll
  for (int k = 0; k < kPackets; ++k) {
    const int64_t column = first + k * kThreads * 8;
    if (column >= a.pitch) continue;
    Codes codes = encode_packet<elem>(p[k], scale);
    const int64_t left = a.columns - column;
    if (left < 8) {  // 0 past the last column, also where the scale is NaN
      const uint64_t keep = left <= 0 ? 0 : (uint64_t{1} << (8 * left)) - 1;
      codes.words[0] &= static_cast<uint32_t>(keep);
      codes.words[1] &= static_cast<uint32_t>(keep >> 32);
    }
    store_packet(a.codes + row * a.pitch + column, codes);
  }
}

// ---- launch
template <ElemDtype elem>
LaunchStatus launch_cast(const Float8TensorArgs& a, int64_t blocks, cudaStream_t stream) {
  const auto kernel = a.x_type == FloatType::BF16 ? cast<BFloat16, elem> : cast<float, elem>;
  return launch_early(kernel, blocks, kThreads, 0, stream, a);
}

}  // namespace

LaunchStatus launch_amax(const void* x, FloatType x_type, int64_t count, uint32_t* amax,
                         cudaStream_t stream) {
  const LaunchStatus cleared = launch_clear(amax, 1, stream);
  if (!cleared.ok() || count == 0) return cleared;
  const int64_t packets = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? count / 8 : 0;
  const int64_t wanted = (count / 8 + kThreads - 1) / kThreads + 1;
  const int64_t blocks = std::min<int64_t>(wanted, kAmaxBlocks * multiprocessor_count());
  if (x_type == FloatType::BF16) {
    return launch_early(find_amax<BFloat16>, blocks, kThreads, 0, stream,
                        static_cast<const BFloat16*>(x), packets, count, amax);
  }
  return launch_early(find_amax<float>, blocks, kThreads, 0, stream, static_cast<const float*>(x),
                      packets, count, amax);
}

LaunchStatus launch_float8_tensor(const Float8TensorArgs& args, cudaStream_t stream) {
  Float8TensorArgs a = args;
  const bool fits = a.elem == ElemDtype::E4M3 || a.elem == ElemDtype::E5M2;
  if (!fits) return refused("a format that the hardware does not convert to");
  if (a.pitch % 16 != 0 || a.pitch < a.columns)
    return refused("a pitch of codes that does not fit");
  if (a.pitch == a.columns) {  // one long row: no division left with a rest
    a.pitch = a.columns = a.groups.rows * a.columns;
    a.groups.rows = 1;
  }
  // At least one block, which writes the scales.
  const int64_t blocks =
      std::max<int64_t>(a.groups.rows * ((a.pitch + kSegment - 1) / kSegment), 1);
  return a.elem == ElemDtype::E4M3 ? launch_cast<ElemDtype::E4M3>(a, blocks, stream)
                                   : launch_cast<ElemDtype::E5M2>(a, blocks, stream);
}

}  // namespace moe8::cuda
