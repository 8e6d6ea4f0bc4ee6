// SPDX-License-Identifier: BSD-3-Clause
#include "train/thread_count.h"

#include <ATen/Parallel.h>

#include <exception>

namespace moe8 {
namespace {

void set_if_other(int count) {
  if (count != at::get_num_threads()) at::set_num_threads(count);
}

}  // namespace

ThreadCount::ThreadCount(int64_t count)
    : before_(at::get_num_threads()), exceptions_(std::uncaught_exceptions()) {
  if (count > 0) set_if_other(static_cast<int>(count));
}

ThreadCount::~ThreadCount() {
  if (std::uncaught_exceptions() == exceptions_) set_if_other(before_);
}

}  // namespace moe8
