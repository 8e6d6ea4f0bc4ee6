// SPDX-License-Identifier: BSD-3-Clause
// The public quantizers on a GPU, arguments checked: each works on the current stream, never waits
// for the device, and equals the CPU's bit for bit. In a build without CUDA they say so.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moe8/blocked_scales.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "quantize/codes.h"

namespace moe8 {

MxCodes cuda_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                         int64_t axis, const std::optional<at::Tensor>& offs);

at::Tensor cuda_fake_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                                 int64_t axis, const std::optional<at::Tensor>& offs,
                                 at::ScalarType dtype);

Float8Codes cuda_quantize_float8(const at::Tensor& x, const Float8Granularity& granularity,
                                 ElemDtype elem, bool round_scales_to_power_of_2,
                                 const std::optional<at::Tensor>& offs);

/// Values of codes that are scaled along rows, the last axis.
/// @param codes  uint8, contiguous, of E4M3 or E5M2
/// @param scale  float32, one per row, of FP8; or bytes, one per block of 32, of MX
at::Tensor cuda_dequantize_rows(const at::Tensor& codes, const at::Tensor& scale, ElemDtype elem,
                                at::ScalarType dtype);

/// to_blocked_m_groups, to_blocked_k_groups: bytes in, bytes out.
BlockedGroups cuda_blocked_m_groups(const at::Tensor& bytes, const at::Tensor& offs);
BlockedGroups cuda_blocked_k_groups(const at::Tensor& bytes, const at::Tensor& offs);

}  // namespace moe8
