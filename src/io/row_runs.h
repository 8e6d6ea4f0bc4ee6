// SPDX-License-Identifier: BSD-3-Clause
// Rows of tensors on their way from files into memory, by all threads.
#pragma once

#include <c10/util/FunctionRef.h>

#include <cstdint>

namespace moe8 {

/// run(begin, end) over [0, rows) on LibTorch's threads, each set as the caller's is (gradients,
/// inference mode). A run has about 4 MiB, and a row at least: enough for a call of the system to cost
/// nothing beside it, little enough for all threads to have some of a large tensor.
/// @param row_bytes  of a row in the file
void for_each_run_of_rows(int64_t rows, int64_t row_bytes,
                          c10::function_ref<void(int64_t begin, int64_t end)> run);

}  // namespace moe8
