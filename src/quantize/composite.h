// SPDX-License-Identifier: BSD-3-Clause
// The quantizers made of LibTorch's operations, for every device without kernels of moe8: slow,
// without a wait of the host for the device, and equal to the kernels bit for bit, NaN payloads
// aside. Codes and scales are found by operations on the bits of float32 numbers, as in
// src/formats/; the float operations among them are single additions, multiplications and
// divisions, which round alike everywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moe8/blocked_scales.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "quantize/codes.h"

namespace moe8 {

/// As quantize_mx, arguments checked; axis counts from the front.
MxCodes composite_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                              int64_t axis, const std::optional<at::Tensor>& offs);

/// As quantize_float8, arguments checked.
Float8Codes composite_quantize_float8(const at::Tensor& x, const Float8Granularity& granularity,
                                      ElemDtype elem, bool round_scales_to_power_of_2,
                                      const std::optional<at::Tensor>& offs);

/// decode(codes) * 2^(scale - 127), rounded once to `dtype`.
/// @param codes  uint8, one code per byte, shape of the source; the rest of x as it is
at::Tensor composite_dequantize_mx(const MXTensor& x, const at::Tensor& codes,
                                   at::ScalarType dtype);

/// decode(codes) * (1 / scale), in float32, rounded to `dtype`.
at::Tensor composite_dequantize_float8(const Float8Tensor& x, const at::Tensor& codes,
                                       at::ScalarType dtype);

}  // namespace moe8
