// SPDX-License-Identifier: BSD-3-Clause
// Device helpers of the model's kernels: packets of eight elements as floats and back, and matrices
// that are read in whole packets or element by element.
#pragma once

#include <cstdint>

#include "cuda/quantize/packet.cuh"
#include "formats/float_type.h"

namespace moe8::cuda {

constexpr int kPacket = Packet<float>::kElements;

/// Eight floats, each rounded to T (nearest even; NaN stays NaN).
template <typename T>
__device__ Packet<T> packed(const float (&x)[kPacket]) {
  Packet<T> packet;
#pragma unroll
  for (int i = 0; i < kPacket; i += 2) {
    if constexpr (sizeof(T) == 4) {
      packet.words[i] = __float_as_uint(x[i]), packet.words[i + 1] = __float_as_uint(x[i + 1]);
    } else {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packet.words[i / 2]) : "f"(x[i + 1]), "f"(x[i]));
    }
  }
  return packet;
}

/// One float rounded to T.
template <typename T>
__device__ T rounded(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return {bits};
  }
}

/// What many blocks read, by way of the L1; at a 16-byte boundary.
template <typename T>
__device__ Packet<T> load_shared_packet(const T* p) {
  Packet<T> packet;
#pragma unroll
  for (int w = 0; w < Packet<T>::kWords; w += 4) {
    const uint4 v = reinterpret_cast<const uint4*>(p)[w / 4];
    packet.words[w] = v.x, packet.words[w + 1] = v.y;
    packet.words[w + 2] = v.z, packet.words[w + 3] = v.w;
  }
  return packet;
}

}  // namespace moe8::cuda
