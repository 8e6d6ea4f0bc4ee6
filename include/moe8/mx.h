// SPDX-License-Identifier: BSD-3-Clause
// MX tensors: element codes plus one e8m0 scale (a power of two) per block of kMxBlock elements.
// The layouts in which block-scaled tensor cores want the scales are in blocked_scales.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "moe8/config.h"

namespace moe8 {

/// A tensor in an MX format: value = decode(data) * 2^(scale - 127).
struct MXTensor {
  at::Tensor data;  // codes, shape of the source. e4m3, e5m2: float8 dtypes; e2m3, e3m2: uint8, one
                    // code per byte; e2m1: float4_e2m1fn_x2, two per byte, last axis halved
  at::Tensor scale;  // float8_e8m0fnu, shape of the source with blocks counted along `axis`
  ElemDtype elem = ElemDtype::E4M3;
  int64_t axis = 0;  // along which blocks run, from the front
  at::ScalarType orig_dtype = at::kBFloat16;
  std::vector<int64_t> shape;      // the source's
  std::optional<at::Tensor> offs;  // set: blocks start afresh at each group's first row
};

/// Quantizes x to an MX format.
///
///   s    = scale byte of the block's amax under `mode`
///   data = cast(x * 2^(127 - s))            to nearest, ties to even, saturating
///
/// @param x     bf16 or float32, any rank >= 1, any strides.
/// @param axis  the axis along which 32 consecutive elements share a scale; the last block may be
///              short. Negative counts from the back.
/// @param offs  [E] int32 end rows of groups along `axis` (then x is 2-D and axis 0): each group's
///              blocks start at its first row, group after group, in a scale tensor of
///              (M + 31 E) / 32 block rows; unused scales, and data at or past offs[E-1], are 0.
/// @return      contiguous data and scale; not differentiable.
/// @throws c10::Error on another dtype or device, axis out of range, or offs that do not fit.
/// A NaN or Inf makes its whole block NaN (scale 255). Exact: equal bit for bit on every device.
/// Source: OCP MX v1.0; docs/numerics.md, section 3.
MXTensor quantize_mx(const at::Tensor& x, ElemDtype elem = ElemDtype::E4M3,
                     ScaleCalculationMode mode = ScaleCalculationMode::FLOOR, int64_t axis = -1,
                     const std::optional<at::Tensor>& offs = std::nullopt);

/// The values of an MX tensor:
///
///   value = decode(data) * 2^(scale - 127)      rounded once to `dtype`
///
/// @param dtype  bf16 or float32; default the source's.
/// @return       contiguous, x.shape; elements in no group are 0.
/// @throws c10::Error when the parts of x do not fit together or dtype is another. Exact.
at::Tensor dequantize(const MXTensor& x, std::optional<at::ScalarType> dtype = std::nullopt);

/// quantize_mx followed by dequantize, bit for bit, in one pass and without the codes.
/// @param dtype  bf16 or float32; default the dtype of x.
/// @return       contiguous, the shape of x. Arguments and errors as quantize_mx.
at::Tensor fake_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                            int64_t axis = -1, const std::optional<at::Tensor>& offs = std::nullopt,
                            std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace moe8
