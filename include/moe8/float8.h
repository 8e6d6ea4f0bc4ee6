// SPDX-License-Identifier: BSD-3-Clause
// Float8 tensors: e4m3 or e5m2 codes with float32 scales, one per tensor, row, column or group.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "moe8/config.h"

namespace moe8 {

/// Which elements share a scale.
struct Float8Granularity {
  ScalingGranularity kind = ScalingGranularity::TENSORWISE;
  int64_t axis = -1;  // axiswise: the axis that is reduced (scale has size 1 there)

  static Float8Granularity tensorwise() { return {}; }
  static Float8Granularity axiswise(int64_t axis) { return {ScalingGranularity::AXISWISE, axis}; }
  bool operator==(const Float8Granularity&) const = default;
};

/// A tensor in FP8: value = decode(data) / scale. The stored scale MULTIPLIES the source.
struct Float8Tensor {
  at::Tensor data;   // float8_e4m3fn or float8_e5m2, shape of the source
  at::Tensor scale;  // float32; tensorwise []; axiswise: source shape with 1 at `axis`;
                     // with offs: [E, C], one per group and column
  ElemDtype elem = ElemDtype::E4M3;
  Float8Granularity granularity;
  bool round_scales_to_power_of_2 = false;
  at::ScalarType orig_dtype = at::kBFloat16;
  std::optional<at::Tensor> offs;
};

/// Quantizes x to FP8. `amax` is the largest magnitude of the elements that share a scale.
///
///   scale = float32(max_of_format / max(amax, 1e-12))   448 for E4M3, 57344 for E5M2
///   data  = cast(float32(x) * scale)                    to nearest, ties to even, saturating
///
/// @param x            bf16 or float32, any strides; any rank, at least 1 for axiswise.
/// @param granularity  which elements share a scale.
/// @param elem         E4M3 or E5M2.
/// @param round_scales_to_power_of_2  true: the scale is rounded down to a power of two first.
/// @param offs         [E] int32 end rows on x's device: x is 2-D, axiswise(0), one scale per
///                     (group, column); rows at or past offs[E-1] have code 0; an empty group has
///                     the scale of amax 0.
/// @return             contiguous data of x's shape; not differentiable.
/// @throws c10::Error on another dtype, device or format, an axis out of range, offs that do not
///         fit or come with tensorwise.
/// A NaN or Inf makes the results of its reduced set NaN and of no other. Exact on every device.
/// Source: docs/numerics.md, section 2.
Float8Tensor quantize_float8(const at::Tensor& x, Float8Granularity granularity,
                             ElemDtype elem = ElemDtype::E4M3,
                             bool round_scales_to_power_of_2 = false,
                             const std::optional<at::Tensor>& offs = std::nullopt);

/// The values of a Float8Tensor:
///
///   value = decode(data) * (1 / scale)      the reciprocal in float32; rounded once to `dtype`
///
/// @param dtype  bf16 or float32; default the source's.
/// @return       contiguous, the shape of x.data; rows at or past offs[E-1] are 0.
/// @throws c10::Error when the parts of x do not fit together or dtype is another. Exact.
at::Tensor dequantize(const Float8Tensor& x, std::optional<at::ScalarType> dtype = std::nullopt);

/// quantize_float8 followed by dequantize, bit for bit, in one pass and without the codes.
/// @param dtype  bf16 or float32; default the dtype of x.
/// @return       contiguous, the shape of x. Arguments and errors as quantize_float8.
at::Tensor fake_quantize_float8(const at::Tensor& x, Float8Granularity granularity, ElemDtype elem,
                                bool round_scales_to_power_of_2,
                                const std::optional<at::Tensor>& offs = std::nullopt,
                                std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace moe8
