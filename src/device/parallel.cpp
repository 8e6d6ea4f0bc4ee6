// SPDX-License-Identifier: BSD-3-Clause
// The one file compiled with OpenMP: at::parallel_for is a template that runs on one thread in any
// file compiled without it, and says nothing.
#include "device/parallel.h"

#include <ATen/Parallel.h>
#include <omp.h>

namespace moe8 {

void parallel_ranges(int64_t items, int64_t grain, c10::function_ref<void(int64_t, int64_t)> run) {
  if (items > 0) at::parallel_for(0, items, grain, run);
}

void stay_on_this_thread() {
  at::internal::lazy_init_num_threads();  // once per thread: later it would undo what follows
  omp_set_num_threads(1);
}

}  // namespace moe8
