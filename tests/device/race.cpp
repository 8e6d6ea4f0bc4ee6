// SPDX-License-Identifier: BSD-3-Clause
// A race between LibTorch's threads, for ThreadSanitizer to find: built in the preset tsan alone, where a
// test expects the report. A suppression that matches too much would hide every such race.
#include <ATen/ops/ones.h>

#include <cstdio>

#include "device/parallel.h"

namespace {

// No atomic, no lock.
int64_t count_all(int64_t items) {
  int64_t count = 0;
  moe8::parallel_ranges(items, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++count;
  });
  return count;
}

}  // namespace

int main() {
  at::ones({1 << 20}).add_(1);  // the threads are LibTorch's: it starts them
  std::printf("%lld\n", static_cast<long long>(count_all(1 << 20)));
}
