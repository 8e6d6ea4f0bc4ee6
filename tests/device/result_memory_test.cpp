// SPDX-License-Identifier: BSD-3-Clause
// Memory of results: used again after it is freed, never while it is in use, bounded when idle.
#include "device/result_memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

#include "device/allocate.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

bool is_always_fresh() {
  ResultAllocator allocator(64 * kMiB);
  allocator.allocate(4 * kMiB);
  return allocator.idle_bytes() == 0;  // under AddressSanitizer
}

TEST(ResultMemory, FreedMemoryServesTheNextResultOfItsSize) {
  if (is_always_fresh()) GTEST_SKIP() << "nothing is kept under AddressSanitizer";
  ResultAllocator allocator(64 * kMiB);
  void* first = nullptr;
  {
    const c10::DataPtr a = allocator.allocate(4 * kMiB);
    const c10::DataPtr b = allocator.allocate(4 * kMiB);
    first = a.get();
    EXPECT_NE(a.get(), b.get());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.get()) % 64, 0u);
    std::memset(a.get(), 1, 4 * kMiB);
    std::memset(b.get(), 2, 4 * kMiB);
    EXPECT_EQ(allocator.idle_bytes(), 0u);
  }
  EXPECT_EQ(allocator.idle_bytes(), 8 * kMiB);
  EXPECT_EQ(allocator.allocate(4 * kMiB - 100).get(), first) << "the last one freed";
  const c10::DataPtr larger = allocator.allocate(8 * kMiB);
  EXPECT_EQ(allocator.idle_bytes(), 8 * kMiB) << "none of the idle ones is large enough";
  const c10::DataPtr smaller = allocator.allocate(2 * kMiB);
  EXPECT_EQ(allocator.idle_bytes(), 8 * kMiB) << "those idle are far too large";
}

TEST(ResultMemory, IdleMemoryIsBounded) {
  ResultAllocator allocator(10 * kMiB);
  for (int i = 0; i < 3; ++i) {
    const c10::DataPtr a = allocator.allocate(4 * kMiB);
    const c10::DataPtr b = allocator.allocate(6 * kMiB);
    const c10::DataPtr c = allocator.allocate(16 * kMiB);
  }
  EXPECT_LE(allocator.idle_bytes(), 10 * kMiB);
  allocator.free_idle();
  EXPECT_EQ(allocator.idle_bytes(), 0u);
}

TEST(ResultMemory, NothingIsKeptWhenNothingMayBe) {
  ResultAllocator allocator(0);
  allocator.allocate(4 * kMiB);
  EXPECT_EQ(allocator.idle_bytes(), 0u);
}

TEST(ResultMemory, ResultsAreOrdinaryTensors) {
  const at::Tensor x = at::rand({1024, 4096}).to(at::kBFloat16);
  at::Tensor first = fake_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR);
  const at::Tensor copy = first.clone();
  const at::Tensor second = fake_quantize_mx(-x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR);
  EXPECT_TRUE(at::equal(first, copy)) << "its memory must not be given to another";
  EXPECT_TRUE(at::equal(first, -second));
  first.requires_grad_(true);
  (first * 2).sum().backward();
  EXPECT_TRUE(first.grad().eq(2).all().item<bool>());
  at::Tensor grown = first.detach();
  grown.resize_({4096, 4096});
  EXPECT_TRUE(at::equal(grown.view(-1).slice(0, 0, copy.numel()), copy.view(-1)));
  const c10::InferenceMode guard;
  EXPECT_TRUE(fake_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR).is_inference());
}

TEST(ResultMemory, ThreadsShareOne) {
  ResultAllocator allocator(32 * kMiB);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (char mark = 1; mark <= 4; ++mark) {
    threads.emplace_back([&, mark] {
      for (int i = 0; i < 200; ++i) {
        const c10::DataPtr memory = allocator.allocate(static_cast<size_t>(2 + i % 3) * kMiB);
        char* bytes = static_cast<char*>(memory.get());
        bytes[0] = bytes[2 * kMiB - 1] = mark;
        std::this_thread::yield();
        if (bytes[0] != mark || bytes[2 * kMiB - 1] != mark) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(allocator.idle_bytes(), 32 * kMiB);
}

}  // namespace
}  // namespace moe8
