// SPDX-License-Identifier: BSD-3-Clause
// Profiled events as a table: of a GPU the time by class of kernel, of a CPU by operation.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/profile/profiler.h"

namespace moe8 {

/// A line of the table.
struct TimeShare {
  std::string name;
  double ms = 0;     // of a step
  double calls = 0;  // in a step
};

struct TimeTable {
  bool is_of_gpu = false;
  double span_ms = 0;              // of a step, from the first event to the last
  double idle_ms = 0;              // of it, when nothing ran
  std::vector<TimeShare> classes;  // the longest first; of a CPU the operations
  std::vector<TimeShare> kernels;  // of a GPU, likewise
};

/// @param events  of `steps` steps. Where a GPU worked, its events alone count. The time of an
///                operation is without that of those within it.
TimeTable time_table(const std::vector<ProfiledEvent>& events, int64_t steps);

/// For people: classes, then the kernels that take more than 1 %.
std::string to_text(const TimeTable& table, size_t columns = 0);

/// "products FP8", "attention", ...; by the name that Kineto gives a kernel.
std::string_view kernel_class(std::string_view kernel);

/// "void moe8::cuda::(anonymous namespace)::f<...>(...)" -> "f".
std::string short_kernel_name(std::string_view name);

}  // namespace moe8
