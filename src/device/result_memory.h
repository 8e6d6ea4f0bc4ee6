// SPDX-License-Identifier: BSD-3-Clause
// Memory of large CPU results. A fresh page costs a quantizer several times what filling it costs,
// and LibTorch's allocator returns large results to the system at once: so this one asks for huge
// pages and keeps some memory for the next result (docs/decisions/011-result-memory.md).
#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>
#include <list>
#include <mutex>

namespace moe8 {

/// Allocates like LibTorch's allocator below kMinBytes bytes. Larger memory that is freed is kept,
/// up to `most_idle` bytes, the least recently used being returned first. Safe for several threads.
class ResultAllocator final : public c10::Allocator {
 public:
  static constexpr size_t kMinBytes = size_t{2} << 20;

  explicit ResultAllocator(size_t most_idle) : most_idle_(most_idle) {}
  ~ResultAllocator() override { free_idle(); }
  ResultAllocator(const ResultAllocator&) = delete;
  ResultAllocator& operator=(const ResultAllocator&) = delete;

  c10::DataPtr allocate(size_t bytes) override;
  void copy_data(void* to, const void* from, size_t bytes) const override;

  size_t idle_bytes() const;
  void free_idle();

 private:
  struct Memory {
    void* data;
    size_t size;
    ResultAllocator* owner;
  };
  static void take_back(void* context);
  std::list<Memory> take(size_t size);  // one; none when the system has no more
  void shrink_to(size_t most);          // mutex_ is held

  const size_t most_idle_;
  mutable std::mutex mutex_;
  std::list<Memory> idle_;  // the most recently used at the front
  size_t idle_bytes_ = 0;
};

/// The one of all quantizers. MOE8_CPU_RESULT_CACHE_MB sets how much it keeps, 256 by default.
ResultAllocator& result_allocator();

}  // namespace moe8
