// SPDX-License-Identifier: BSD-3-Clause
// Tensors for the results of quantizers.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <optional>

#include "device/result_memory.h"

namespace moe8 {

/// An uninitialized result on the device of `like`.
inline at::Tensor allocate_result(at::IntArrayRef sizes, at::ScalarType dtype,
                                  const at::Tensor& like) {
  if (!like.is_cpu()) return at::empty(sizes, like.options().dtype(dtype).requires_grad(false));
  return at::detail::empty_generic(sizes, &result_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

/// Kernels do not write the rows that belong to no group: those from `rows` on.
inline void zero_rows_from(const at::Tensor& result, int64_t rows) {
  if (rows < result.size(0)) result.narrow(0, rows, result.size(0) - rows).zero_();
}

}  // namespace moe8
