// SPDX-License-Identifier: BSD-3-Clause
#include "io/row_runs.h"

#include <ATen/ThreadLocalState.h>

#include <algorithm>

#include "device/parallel.h"

namespace moe8 {

void for_each_run_of_rows(int64_t rows, int64_t row_bytes,
                          c10::function_ref<void(int64_t, int64_t)> run) {
  constexpr int64_t kBytesOfRun = int64_t{4} << 20;
  const int64_t length = std::max<int64_t>(1, kBytesOfRun / std::max<int64_t>(1, row_bytes));
  const at::ThreadLocalState caller;
  parallel_ranges((rows + length - 1) / length, 1, [&](int64_t first, int64_t last) {
    const at::ThreadLocalStateGuard as_the_caller(caller);
    for (int64_t i = first; i < last; ++i) run(i * length, std::min(rows, (i + 1) * length));
  });
}

}  // namespace moe8
