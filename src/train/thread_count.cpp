// SPDX-License-Identifier: BSD-3-Clause
#include "train/thread_count.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string>

namespace moe8 {
namespace {

void set_if_other(int count) {
  if (count != at::get_num_threads()) at::set_num_threads(count);
}

}  // namespace

int64_t threads_beside_gpu(const std::function<const char*(const char*)>& variable,
                           int64_t of_machine) {
  const auto is_set_to = [&](const char* name, const std::string& value) {
    const char* const found = variable(name);
    return found && found == value;
  };
  const char* const ranks = variable("LOCAL_WORLD_SIZE");
  if (!variable("TORCHELASTIC_RUN_ID") || !ranks || !is_set_to("OMP_NUM_THREADS", "1")) return 0;
  const int64_t count = std::strtoll(ranks, nullptr, 10);
  return std::max<int64_t>(of_machine / std::max<int64_t>(count, 1), 1);
}

ThreadCount::ThreadCount(int64_t count)
    : before_(at::get_num_threads()), exceptions_(std::uncaught_exceptions()) {
  if (count > 0) set_if_other(static_cast<int>(count));
}

ThreadCount::~ThreadCount() {
  if (std::uncaught_exceptions() == exceptions_) set_if_other(before_);
}

}  // namespace moe8
