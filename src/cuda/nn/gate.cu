// SPDX-License-Identifier: BSD-3-Clause
// The gate of a feed-forward: a packet of eight pairs per thread.
#include <initializer_list>

#include "cuda/experts/gate.cuh"
#include "cuda/launch.cuh"
#include "cuda/nn/gate.h"
#include "cuda/nn/packets.cuh"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;

/// The elements of this thread, in whole packets where all addresses allow it.
template <typename T, bool kAligned>
struct Place {
  int64_t first, left;

  __device__ explicit Place(int64_t count)
      : first((static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPacket),
        left(count - first) {}
  __device__ bool is_whole() const { return kAligned && left >= kPacket; }
  __device__ Packet<T> load(const void* x) const {
    const T* p = static_cast<const T*>(x) + first;
    return is_whole() ? load_packet(p) : load_elements(p, left);
  }
  __device__ void store(void* x, const float (&values)[kPacket]) const {
    T* p = static_cast<T*>(x) + first;
    const Packet<T> packet = packed<T>(values);
    is_whole() ? store_packet(p, packet) : store_elements(p, packet, left);
  }
};

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) gate_packets(const __grid_constant__ GateArgs a) {
  follow_stream();
  const Place<T, kAligned> at(a.count);
  if (at.left <= 0) return;
  const Packet<T> gate = at.load(a.gate), up = at.load(a.up);
  float out[kPacket];
#pragma unroll
  for (int i = 0; i < kPacket; ++i) out[i] = activate<true>({}, gate.get(i), up.get(i)).value;
  at.store(a.out, out);
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    gate_packets_backward(const __grid_constant__ GateBackwardArgs a) {
  follow_stream();
  const Place<T, kAligned> at(a.count);
  if (at.left <= 0) return;
  const Packet<T> gate = at.load(a.gate), up = at.load(a.up), grad = at.load(a.grad);
  float to_gate[kPacket], to_up[kPacket];
#pragma unroll
  for (int i = 0; i < kPacket; ++i) {
    const Activated d = activate<true>({}, gate.get(i), up.get(i));
    to_gate[i] = __fmul_rn(grad.get(i), d.by_gate);
    to_up[i] = __fmul_rn(grad.get(i), d.by_up);
  }
  at.store(a.grad_gate, to_gate);
  at.store(a.grad_up, to_up);
}

template <typename Args>
LaunchStatus launch(void (*kernel)(Args), const Args& a, cudaStream_t stream) {
  return launch_early(kernel, ceil_div(a.count, kThreads * kPacket), kThreads, 0, stream, a);
}

bool is_packet_aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (!is_aligned(p, 0, 1)) return false;
  }
  return true;
}

constexpr int64_t kMostElements = int64_t{INT32_MAX} * kThreads * kPacket;

}  // namespace

LaunchStatus launch_gate(const GateArgs& a, cudaStream_t stream) {
  if (a.count > kMostElements) return refused("more elements than a grid has");
  if (a.count == 0) return {};
  const bool aligned = is_packet_aligned({a.gate, a.up, a.out});
  if (a.type == FloatType::BF16) {
    return launch(aligned ? gate_packets<BFloat16, true> : gate_packets<BFloat16, false>, a,
                  stream);
  }
  return launch(aligned ? gate_packets<float, true> : gate_packets<float, false>, a, stream);
}

LaunchStatus launch_gate_backward(const GateBackwardArgs& a, cudaStream_t stream) {
  if (a.count > kMostElements) return refused("more elements than a grid has");
  if (a.count == 0) return {};
  const bool aligned = is_packet_aligned({a.gate, a.up, a.grad, a.grad_gate, a.grad_up});
  if (a.type == FloatType::BF16) {
    return launch(
        aligned ? gate_packets_backward<BFloat16, true> : gate_packets_backward<BFloat16, false>, a,
        stream);
  }
  return launch(aligned ? gate_packets_backward<float, true> : gate_packets_backward<float, false>,
                a, stream);
}

}  // namespace moe8::cuda
