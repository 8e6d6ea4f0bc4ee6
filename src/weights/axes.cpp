// SPDX-License-Identifier: BSD-3-Clause
#include "weights/axes.h"

namespace moe8 {
namespace {

// True when `size` steps of `stride` stay within axis `dim` of `weight`.
bool lies_within(const at::TensorBase& weight, int64_t dim, int64_t size, int64_t stride) {
  const int64_t step = weight.stride(dim);
  return weight.size(dim) > 1 && step > 0 && stride % step == 0 &&
         (size - 1) * stride < weight.size(dim) * step;
}

}  // namespace

AxisSet matrix_axes(int64_t dim) {
  AxisSet axes;
  for (int64_t axis = dim < 2 ? 0 : dim - 2; axis < dim; ++axis) axes.set(axis);
  return axes;
}

AxisSet axes_of_view(const at::TensorBase& weight, AxisSet axes, const at::TensorBase& view) {
  AxisSet found;
  for (int64_t axis = 0; axis < view.dim(); ++axis) {
    const int64_t size = view.size(axis);
    const int64_t stride = view.stride(axis);
    if (size < 2 || stride == 0) continue;
    for (int64_t dim = 0; dim < weight.dim(); ++dim) {
      if (axes[dim] && lies_within(weight, dim, size, stride)) found.set(axis);
    }
  }
  return found;
}

}  // namespace moe8
