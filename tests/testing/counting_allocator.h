// SPDX-License-Identifier: BSD-3-Clause
// LibTorch's allocator replaced by one that counts.
#pragma once

#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "formats/integers.h"

namespace moe8::testing {

// Counts the bytes of tensors that are alive, rounded to nothing.
class CountingAllocator : public c10::Allocator {
 public:
  static CountingAllocator& get() {
    static CountingAllocator allocator;
    return allocator;
  }
  /// From now on LibTorch's tensors on the CPU come from it.
  static void install() { c10::SetAllocator(c10::kCPU, &get(), /*priority=*/200); }
  c10::DataPtr allocate(size_t size) override {
    auto* block =
        static_cast<char*>(std::aligned_alloc(kHeader, round_up(size, kHeader) + kHeader));
    if (!block) throw std::bad_alloc();
    std::memcpy(block, &size, sizeof size);
    alive_ += static_cast<int64_t>(size);
    return {block + kHeader, block + kHeader, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
  int64_t alive() const { return alive_; }

 private:
  static constexpr size_t kHeader = 64;  // LibTorch wants that alignment

  static void release(void* data) {
    if (!data) return;
    char* block = static_cast<char*>(data) - kHeader;
    size_t size = 0;
    std::memcpy(&size, block, sizeof size);
    get().alive_ -= static_cast<int64_t>(size);
    std::free(block);
  }

  std::atomic<int64_t> alive_{0};
};

}  // namespace moe8::testing
