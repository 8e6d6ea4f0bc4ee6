// SPDX-License-Identifier: BSD-3-Clause
// The formats in which a GEMM can have an operand. Adding one means an alternative of OperandFormat
// here, its branches in operand_format.cpp and operand.cpp, and rows in
// src/autograd/training_formats.cpp.
#pragma once

#include <c10/core/ScalarType.h>

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

/// Formats of the two operands of one GEMM.
struct GemmFormats {
  OperandFormat left;
  OperandFormat right;
  bool use_fast_accum = false;
  bool operator==(const GemmFormats&) const = default;
};

/// "mx float8_e4m3fn rceil", for logs.
std::string to_string(const OperandFormat& format);

/// True when the values of this operand, source dtype given, are bf16 numbers: power-of-two scales
/// and few bits, or a bf16 source left alone. A bf16 GEMM of such operands loses nothing.
bool values_fit_bf16(const OperandFormat& format, at::ScalarType source);

}  // namespace moe8
