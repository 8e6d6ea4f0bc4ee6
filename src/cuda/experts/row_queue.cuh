// SPDX-License-Identifier: BSD-3-Clause
// Rows on their way from global to shared memory, several ahead of the one that a block works on:
// one bulk copy per matrix and row, no registers, no instructions of the other threads.
#pragma once

#include <cstdint>
#include <cuda/ptx>

namespace moe8::cuda {

inline constexpr int kMaxStages = 4;

/// A matrix that rows are taken from: whole 16-byte pieces, at an address of whole ones.
struct QueuedMatrix {
  const void* rows;
  uint32_t row_bytes;
};

/// A row of kMatrices matrices per stage, one behind the other.
template <int kMatrices>
struct RowQueue {
  QueuedMatrix matrices[kMatrices];
  uint8_t* memory;  // shared, stages * stage_bytes(), 16-byte aligned
  uint64_t* ready;  // shared, [kMaxStages]
  int stages;

  int64_t last = 0;  // rows from here on are not fetched
  int stage = 0;
  uint32_t phase = 0;

  __device__ uint32_t stage_bytes() const {
    uint32_t bytes = 0;
#pragma unroll
    for (const QueuedMatrix& m : matrices) bytes += m.row_bytes;
    return bytes;
  }

  /// By all threads, before anything else. It touches no global memory.
  __device__ void prepare() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < stages; ++s) ::cuda::ptx::mbarrier_init(ready + s, 1);
      ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
    }
    __syncthreads();
  }

  /// Begins with the first of the rows [row, end).
  __device__ void fetch_first(int64_t row, int64_t end) {
    last = end;
    for (int s = 0; s < stages; ++s) fetch(row + s, s);
  }

  /// The current row, which all threads wait for.
  __device__ const uint8_t* wait() const {
    while (!::cuda::ptx::mbarrier_try_wait_parity(ready + stage, phase)) {
    }
    return memory + stage * stage_bytes();
  }

  /// After all threads are done with the current row, number `row`: on to the next.
  __device__ void advance(int64_t row) {
    fetch(row + stages, stage);
    if (++stage == stages) stage = 0, phase ^= 1;
  }

 private:
  __device__ void fetch(int64_t row, int to) {
    if (threadIdx.x != 0 || row >= last) return;
    using namespace ::cuda::ptx;
    uint8_t* target = memory + to * stage_bytes();
    mbarrier_arrive_expect_tx(sem_release, scope_cta, space_shared, ready + to, stage_bytes());
#pragma unroll
    for (const QueuedMatrix& m : matrices) {
      const uint8_t* source = static_cast<const uint8_t*>(m.rows) + row * m.row_bytes;
      cp_async_bulk(space_cluster, space_global, target, source, m.row_bytes, ready + to);
      target += m.row_bytes;
    }
  }
};

}  // namespace moe8::cuda
