// SPDX-License-Identifier: BSD-3-Clause
// Device helpers of the quantizers: eight neighbouring elements in registers, their magnitudes,
// and how they get from and to memory. No formats and no scales here.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "formats/float_type.h"

namespace moe8::cuda {

/// Eight neighbouring elements: one 16-byte access in bf16, two in float32.
template <typename T>
struct Packet {
  static constexpr int kElements = 8;
  static constexpr int kWords = kElements * sizeof(T) / 4;
  uint32_t words[kWords];

  __device__ float get(int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[i]);
    const uint32_t word = words[i / 2];
    return __uint_as_float(i % 2 ? word & 0xFFFF0000u : word << 16);
  }
};

/// Eight codes.
struct Codes {
  static constexpr int kWords = 2;
  uint32_t words[kWords];
};

/// The larger magnitude of each element, as bits without sign; NaN is larger than all.
/// The sign bits of `a` may be anything: magnitudes() clears them at the end.
template <typename T>
__device__ uint32_t max_magnitude(uint32_t a, uint32_t b) {
  if constexpr (sizeof(T) == 2) {
    // One instruction for two elements; .NaN because the plain maximum would lose a NaN.
    uint32_t r;
    asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  } else {
    return max(a & 0x7FFFFFFFu, b & 0x7FFFFFFFu);
  }
}

template <typename T>
__device__ void update_magnitudes(Packet<T>& amax, const Packet<T>& x) {
#pragma unroll
  for (int w = 0; w < Packet<T>::kWords; ++w) {
    amax.words[w] = max_magnitude<T>(amax.words[w], x.words[w]);
  }
}

/// The float32 bits of the largest magnitude in a packet.
template <typename T>
__device__ uint32_t largest_magnitude(const Packet<T>& x) {
  uint32_t m = x.words[0];
#pragma unroll
  for (int w = 1; w < Packet<T>::kWords; ++w) m = max_magnitude<T>(m, x.words[w]);
  if constexpr (sizeof(T) == 2) {
    return max((m & 0x7FFFu) << 16, m & 0x7FFF0000u);
  } else {
    return m & 0x7FFFFFFFu;
  }
}

/// The float32 bits of element i's magnitude, of a packet of maxima.
template <typename T>
__device__ uint32_t magnitude_at(const Packet<T>& x, int i) {
  return __float_as_uint(x.get(i)) & 0x7FFFFFFFu;
}

// ---- memory. What is written is not read again soon: streaming stores spare the L2 for others.
// Loads that stream too were 0 to 5 % slower on an H200.

template <typename T>
__device__ Packet<T> load_packet(const T* p) {
  Packet<T> packet;
#pragma unroll
  for (int w = 0; w < Packet<T>::kWords; w += 4) {
    const uint4 v = __ldcg(reinterpret_cast<const uint4*>(p) + w / 4);
    packet.words[w] = v.x;
    packet.words[w + 1] = v.y;
    packet.words[w + 2] = v.z;
    packet.words[w + 3] = v.w;
  }
  return packet;
}

template <typename T>
__device__ uint32_t element_bits(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return __ldcs(reinterpret_cast<const uint16_t*>(p));
  } else {
    return __ldcs(reinterpret_cast<const uint32_t*>(p));
  }
}

/// The first n elements, one by one: for rows that no 16-byte access may touch. The rest are zero.
template <typename T>
__device__ Packet<T> load_elements(const T* p, int64_t n) {
  Packet<T> packet{};
#pragma unroll
  for (int i = 0; i < Packet<T>::kElements; ++i) {
    const uint32_t bits = i < n ? element_bits(p + i) : 0u;
    packet.words[i * sizeof(T) / 4] |= bits << (sizeof(T) == 2 && i % 2 ? 16 : 0);
  }
  return packet;
}

/// Stores a packet of W words (codes, bf16 or float32 elements) at an aligned address.
template <typename P>
__device__ void store_packet(void* p, const P& packet) {
  if constexpr (P::kWords == 2) {
    __stcs(static_cast<uint2*>(p), make_uint2(packet.words[0], packet.words[1]));
  } else {
#pragma unroll
    for (int w = 0; w < P::kWords; w += 4) {
      __stcs(static_cast<uint4*>(p) + w / 4, make_uint4(packet.words[w], packet.words[w + 1],
                                                        packet.words[w + 2], packet.words[w + 3]));
    }
  }
}

/// Stores the first n of its eight elements one by one.
template <typename P>
__device__ void store_elements(void* p, const P& packet, int64_t n) {
  constexpr int kBytes = P::kWords / 2;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= n) continue;
    const uint32_t word = packet.words[i * kBytes / 4] >> (i * kBytes % 4 * 8);
    if constexpr (kBytes == 1) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(word);
    if constexpr (kBytes == 2) static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(word);
    if constexpr (kBytes == 4) static_cast<uint32_t*>(p)[i] = word;
  }
}

/// Whether rows of `columns` elements from p on can be read and written in 16-byte pieces.
inline bool is_aligned(const void* p, int64_t columns, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && columns * element_bytes % 16 == 0;
}

}  // namespace moe8::cuda
