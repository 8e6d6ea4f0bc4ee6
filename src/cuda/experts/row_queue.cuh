// SPDX-License-Identifier: BSD-3-Clause
// Rows on their way from global to shared memory, several ahead of the one that a block works on:
// one bulk copy per matrix and row, no registers, no instructions of the other threads.
#pragma once

#include <cstdint>
#include <cuda/ptx>

namespace moe8::cuda {

/// Rows in shared memory at once: the one that is worked on and the next. More were no faster.
inline constexpr int kStages = 2;

/// A matrix that rows are taken from: whole 16-byte pieces, at an address of whole ones.
struct QueuedMatrix {
  const void* rows;
  uint32_t row_bytes;
};

/// Consecutive rows of kMatrices matrices, each row in one stage, one matrix behind the other.
template <int kMatrices>
struct RowQueue {
  QueuedMatrix matrices[kMatrices];
  uint8_t* memory;  // shared, kStages * stage_bytes(), 16-byte aligned
  uint64_t* ready;  // shared, [kStages]

  int32_t first = 0;
  int32_t last = 0;

  __device__ uint32_t stage_bytes() const {
    uint32_t bytes = 0;
#pragma unroll
    for (const QueuedMatrix& m : matrices) bytes += m.row_bytes;
    return bytes;
  }

  /// By all threads, before anything else. It touches no global memory.
  __device__ void prepare() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) ::cuda::ptx::mbarrier_init(ready + s, 1);
      ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
    }
    __syncthreads();
  }

  /// The rows [from, to) in ascending order.
  __device__ void begin(int32_t from, int32_t to) {
    first = from;
    last = to;
    for (int32_t row = from; row < from + kStages; ++row) fetch(row);
  }

  /// Until the row is there.
  __device__ const uint8_t* wait(int32_t row) const {
    const uint32_t phase = index_of(row) / kStages % 2;
    while (!::cuda::ptx::mbarrier_try_wait_parity(ready + stage_of(row), phase)) {
    }
    return memory + stage_of(row) * stage_bytes();
  }

  /// After all threads are done with the row.
  __device__ void release(int32_t row) {
    fetch(row + kStages);
  }

 private:
  __device__ uint32_t index_of(int32_t row) const {
    return static_cast<uint32_t>(row - first);
  }
  __device__ uint32_t stage_of(int32_t row) const {
    return index_of(row) % kStages;
  }

  __device__ void fetch(int32_t row) {
    if (threadIdx.x != 0 || row >= last) return;
    using namespace ::cuda::ptx;
    uint64_t* const barrier = ready + stage_of(row);
    uint8_t* target = memory + stage_of(row) * stage_bytes();
    mbarrier_arrive_expect_tx(sem_release, scope_cta, space_shared, barrier, stage_bytes());
#pragma unroll
    for (const QueuedMatrix& m : matrices) {
      const uint8_t* source = static_cast<const uint8_t*>(m.rows) + int64_t{row} * m.row_bytes;
      cp_async_bulk(space_cluster, space_global, target, source, m.row_bytes, barrier);
      target += m.row_bytes;
    }
  }
};

}  // namespace moe8::cuda
