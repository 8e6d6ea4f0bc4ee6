// SPDX-License-Identifier: BSD-3-Clause
// Work items of a CPU kernel over LibTorch's threads.
#pragma once

#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cstdint>

namespace moe8 {

/// run(begin, end) over [0, items) on LibTorch's threads, in tasks of at least `grain` items.
void parallel_ranges(int64_t items, int64_t grain, c10::function_ref<void(int64_t, int64_t)> run);

/// From now on what this thread computes runs on it alone, LibTorch's operations among it: for work
/// beside the threads that train.
void stay_on_this_thread();

/// kernel(begin, end) over [0, items), in parallel when an item's bytes make it worth a thread.
template <typename Kernel>
void parallel_items(int64_t items, int64_t elements_per_item, const Kernel& kernel) {
  constexpr int64_t kElementsPerTask =
      1 << 15;  // about 15 us of work: a few times a thread's wake-up
  const int64_t grain =
      std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, elements_per_item));
  parallel_ranges(items, grain, kernel);
}

}  // namespace moe8
