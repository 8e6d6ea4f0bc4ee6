// SPDX-License-Identifier: BSD-3-Clause
// Tensors of very different sizes shared out among thread blocks: each block has a run of elements
// of one tensor, all runs but a tensor's last are of the same length. The table travels in the
// kernel's parameters, so that no copy to the device comes before the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/quantize/packet.cuh"
#include "formats/integers.h"

namespace moe8::cuda {

constexpr int kTableSize = 48;      // tensors per launch: the parameters stay below 4 KiB
constexpr int kTableThreads = 256;  // per block
constexpr int kTableStep = kTableThreads * 8;  // elements that a block takes at once

/// Entry has int64_t elements; int32_t first_block, set by the table.
template <typename Entry>
struct TensorTable {
  Entry entries[kTableSize];
  int32_t count = 0;
  int32_t blocks = 0;

  bool is_full() const { return count == kTableSize; }
  void add(Entry entry, int64_t run) {
    entry.first_block = blocks;
    blocks += static_cast<int32_t>(ceil_div(entry.elements, run));
    entries[count++] = entry;
  }

  /// Whose run a block has. Every thread of the block looks for itself: in constant memory.
  __device__ const Entry& entry_of(int block) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (entries[middle].first_block <= block ? low : high) = middle;
    }
    return entries[low];
  }
};

/// Elements of one thread: whole packets where `aligned` and eight are left.
template <typename T>
__device__ Packet<T> load_some(const void* x, int64_t at, int64_t left, bool aligned) {
  const T* p = static_cast<const T*>(x) + at;
  return aligned && left >= 8 ? load_packet(p) : load_elements(p, left);
}

template <typename T>
__device__ void store_some(void* x, const Packet<T>& packet, int64_t at, int64_t left,
                           bool aligned) {
  T* p = static_cast<T*>(x) + at;
  aligned&& left >= 8 ? store_packet(p, packet) : store_elements(p, packet, left);
}

/// Element i of a packet whose elements before it have been put.
template <typename T>
__device__ void put(Packet<T>& packet, int i, T value) {
  if constexpr (sizeof(T) == 4) {
    packet.words[i] = __float_as_uint(value);
  } else {
    const uint32_t bits = value.bits;
    packet.words[i / 2] = i % 2 ? packet.words[i / 2] | bits << 16 : bits;
  }
}

inline bool starts_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace moe8::cuda
