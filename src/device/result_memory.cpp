// SPDX-License-Identifier: BSD-3-Clause
#include "device/result_memory.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "formats/integers.h"

namespace moe8 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Aligned to huge pages; nullptr when the system has no more.
void* map_memory(size_t size) {
  const size_t mapped = size + kHugePage;
  void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): MAP_FAILED is mmap's own constant
  if (start == MAP_FAILED) return nullptr;
  const auto address = reinterpret_cast<uintptr_t>(start);
  const size_t before = round_up(address, kHugePage) - address;
  char* data = static_cast<char*>(start) + before;
  if (before > 0) munmap(start, before);
  munmap(data + size, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(data, size, MADV_HUGEPAGE);  // a wish: without huge pages results are the same
#endif
  return data;
}

// Kept memory would hide a use after free from AddressSanitizer.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAlwaysFresh = true;
#else
constexpr bool kAlwaysFresh = false;
#endif

}  // namespace

c10::DataPtr ResultAllocator::allocate(size_t bytes) {
  if (bytes < kMinBytes || kAlwaysFresh) return c10::GetCPUAllocator()->allocate(bytes);
  auto taken = std::make_unique<std::list<Memory>>();
  *taken = take(round_up(bytes, kHugePage));
  if (taken->empty()) return c10::GetCPUAllocator()->allocate(bytes);  // whose error is LibTorch's
  return {taken->front().data, taken.release(), &ResultAllocator::take_back,
          c10::Device(c10::DeviceType::CPU)};
}

void ResultAllocator::copy_data(void* to, const void* from, size_t bytes) const {
  std::memcpy(to, from, bytes);
}

std::list<ResultAllocator::Memory> ResultAllocator::take(size_t size) {
  std::list<Memory> taken;
  {
    const std::lock_guard lock(mutex_);
    auto best = idle_.end();
    for (auto at = idle_.begin(); at != idle_.end(); ++at) {
      const bool fits = at->size >= size && at->size <= size + size / 4;
      if (fits && (best == idle_.end() || at->size < best->size)) best = at;
    }
    if (best != idle_.end()) {
      idle_bytes_ -= best->size;
      taken.splice(taken.end(), idle_, best);
      return taken;
    }
  }
  taken.push_back({nullptr, size, this});
  taken.front().data = map_memory(size);
  if (!taken.front().data) taken.clear();
  return taken;
}

// Memory is also freed on the way out of failures: nothing is allocated here.
void ResultAllocator::take_back(void* context) {
  const std::unique_ptr<std::list<Memory>> taken(static_cast<std::list<Memory>*>(context));
  ResultAllocator& owner = *taken->front().owner;
  const std::lock_guard lock(owner.mutex_);
  owner.idle_bytes_ += taken->front().size;
  owner.idle_.splice(owner.idle_.begin(), *taken);
  owner.shrink_to(owner.most_idle_);
}

void ResultAllocator::shrink_to(size_t most) {
  while (idle_bytes_ > most) {
    munmap(idle_.back().data, idle_.back().size);
    idle_bytes_ -= idle_.back().size;
    idle_.pop_back();
  }
}

size_t ResultAllocator::idle_bytes() const {
  const std::lock_guard lock(mutex_);
  return idle_bytes_;
}

void ResultAllocator::free_idle() {
  const std::lock_guard lock(mutex_);
  shrink_to(0);
}

ResultAllocator& result_allocator() {
  // Never destroyed: tensors in static storage may outlive it.
  static ResultAllocator* allocator = [] {
    size_t megabytes = 256;
    if (const char* text = std::getenv("MOE8_CPU_RESULT_CACHE_MB")) {
      size_t wanted = 0;
      const char* end = text + std::strlen(text);
      const auto [rest, error] = std::from_chars(text, end, wanted);
      if (error == std::errc() && rest == end) megabytes = wanted;
    }
    return new ResultAllocator(megabytes << 20);
  }();
  return *allocator;
}

}  // namespace moe8
