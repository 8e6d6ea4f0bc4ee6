// SPDX-License-Identifier: BSD-3-Clause
#include "device/parallel.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

namespace moe8 {
namespace {

TEST(ParallelItems, RunsOnSeveralThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  parallel_items(2, 1 << 20, [&](int64_t, int64_t) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  at::set_num_threads(before);
  EXPECT_EQ(threads.size(), 2);
}

TEST(ParallelItems, VisitsEveryItemOnce) {
  for (const int64_t items : {0, 1, 2, 3, 1000}) {
    std::vector<int> visits(items);
    parallel_items(items, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++visits[i];
    });
    EXPECT_EQ(visits, std::vector<int>(items, 1));
  }
}

}  // namespace
}  // namespace moe8
