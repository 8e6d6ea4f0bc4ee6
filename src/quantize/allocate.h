// SPDX-License-Identifier: BSD-3-Clause
// Memory for the results of quantizers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace moe8 {

/// A result on the device of `like`. With groups it starts as zeros: kernels do not write the rows
/// that belong to none.
inline at::Tensor allocate_result(at::IntArrayRef sizes, at::ScalarType dtype,
                                  const at::Tensor& like, bool has_groups) {
  const at::TensorOptions options = like.options().dtype(dtype).requires_grad(false);
  return has_groups ? at::zeros(sizes, options) : at::empty(sizes, options);
}

}  // namespace moe8
