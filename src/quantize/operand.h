// SPDX-License-Identifier: BSD-3-Clause
// Operands of a GEMM: in which format, and quantized to it. Adding a format means one alternative
// of OperandFormat here, its branch in operand.cpp, and rows in src/autograd/training_formats.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "moe8/config.h"

namespace moe8 {

struct HighPrecision {
  bool operator==(const HighPrecision&) const = default;
};

struct MxFormat {
  ElemDtype elem;
  ScaleCalculationMode mode;
  bool operator==(const MxFormat&) const = default;
};

struct Float8Format {
  ElemDtype elem;
  ScalingGranularity granularity;
  bool round_scales_to_power_of_2;
  bool operator==(const Float8Format&) const = default;
};

using OperandFormat = std::variant<HighPrecision, MxFormat, Float8Format>;

/// "mx float8_e4m3fn rceil", for logs.
std::string to_string(const OperandFormat& format);

/// True when the values of this operand, source dtype given, are bf16 numbers: power-of-two scales
/// and few bits, or a bf16 source left alone. A bf16 GEMM of such operands loses nothing.
bool values_fit_bf16(const OperandFormat& format, at::ScalarType source);

/// The values that the low-precision operand stands for (quantized and dequantized), along the
/// contracted `axis`, in `dtype`; groups of rows as in quantize_mx. Contiguous.
at::Tensor operand_values(const at::Tensor& x, const OperandFormat& format, int64_t axis,
                          const std::optional<at::Tensor>& offs, at::ScalarType dtype);

}  // namespace moe8
