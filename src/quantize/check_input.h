// SPDX-License-Identifier: BSD-3-Clause
// What every tensor-level function asks of its inputs, in one place: dtype, device, axis, offs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "formats/float_type.h"
#include "moe8/mx.h"

namespace moe8 {

/// "bfloat16 [4, 8] on cpu", for messages.
std::string describe(const at::Tensor& x);

/// An array of numbers in memory: not sparse, mkldnn, nested, meta or of a function transform.
void check_dense(const char* op, const char* argument, const at::Tensor& x);

/// False when memory alone does not say what the values are: zero tensors without memory, which
/// LibTorch's autograd makes, and negative or conjugate views.
bool holds_its_values(const at::Tensor& x);
/// x, or a copy that holds its values. Differentiable.
at::Tensor written_out(const at::Tensor& x);
/// x in memory row by row, for kernels to read: x itself where it is. Without a graph, and not by
/// detach(), which would count as an alias of a converted weight (src/weights/tags.h).
at::Tensor contiguous_values(const at::Tensor& x);
/// For the parts of quantized tensors and for offs, which nobody makes as such views.
void check_holds_its_values(const char* op, const char* argument, const at::Tensor& x);

/// Dense, and bf16 or float32, or an error that names `argument`.
void check_dtype(const char* op, const char* argument, const at::Tensor& x);
void check_out_dtype(const char* op, const char* argument, at::ScalarType dtype);
FloatType float_type(at::ScalarType dtype);

/// The axis counted from the front. @throws when it is out of range.
int64_t check_axis(const char* op, const at::Tensor& x, int64_t axis);

/// End rows of groups: int32, 1-D, on `device`, `groups` of them unless that is -1; on a CPU also
/// non-decreasing, from 0 to `rows`. On a GPU that is asked with MOE8_CHECK_OFFS=on only, since the
/// host waits for the answer; without, kernels clamp what they read, so that wrong end rows give
/// wrong results and do no other harm.
void check_offs(const char* op, const at::Tensor& offs, int64_t groups, int64_t rows,
                const at::Device& device);

/// An MXTensor whose parts fit together: dtypes, shapes, axis. Its fields are open to the caller.
void check_mx_tensor(const char* op, const char* argument, const MXTensor& x);

/// On a CPU or a CUDA device, or an error that says so.
void check_device_supported(const char* op, const char* argument, const at::Tensor& x);

/// A tensor seen as [outer, length, inner] around an axis.
struct AxisView {
  int64_t outer;
  int64_t length;
  int64_t inner;
};
AxisView view_around(const at::IntArrayRef& sizes, int64_t axis);

}  // namespace moe8
