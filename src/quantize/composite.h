// SPDX-License-Identifier: BSD-3-Clause
// Dequantizers made of LibTorch's operations, for every device that has no kernel of its own: slow,
// without host synchronisation, and equal to the CPU's bit for bit, NaN payloads aside.
#pragma once

#include <ATen/core/Tensor.h>

#include "moe8/float8.h"
#include "moe8/mx.h"

namespace moe8 {

/// decode(codes) * 2^(scale - 127), rounded once to `dtype`.
/// @param codes  uint8, one code per byte, shape of the source; the rest of x as it is
at::Tensor composite_dequantize_mx(const MXTensor& x, const at::Tensor& codes,
                                   at::ScalarType dtype);

/// decode(codes) * (1 / scale), in float32, rounded to `dtype`.
at::Tensor composite_dequantize_float8(const Float8Tensor& x, const at::Tensor& codes,
                                       at::ScalarType dtype);

/// int64 [rows] the group of each row; that of rows past the last group is E.
at::Tensor group_of_rows(const at::Tensor& offs, int64_t rows);

}  // namespace moe8
