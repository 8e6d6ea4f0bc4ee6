// SPDX-License-Identifier: BSD-3-Clause
// Operand formats as numbers, for the C interface.
#pragma once

#include <cstdint>
#include <variant>

#include "base/overloaded.h"
#include "operand/operand_format.h"

namespace moe8::native {

// Bits 0-3 the alternative, 4-7 the element format, 8-11 the mode or granularity, 12 power of two.
inline int32_t encode_format(const OperandFormat& format) {
  const auto code = [](int kind, ElemDtype elem, int how, bool power_of_2) {
    return kind | static_cast<int>(elem) << 4 | how << 8 | (power_of_2 ? 1 : 0) << 12;
  };
  return std::visit(
      Overloaded{
          [](const HighPrecision&) { return 0; },
          [&](const MxFormat& f) { return code(1, f.elem, static_cast<int>(f.mode), false); },
          [&](const Float8Format& f) {
            return code(2, f.elem, static_cast<int>(f.granularity), f.round_scales_to_power_of_2);
          }},
      format);
}

inline OperandFormat decode_format(int32_t code) {
  const auto elem = static_cast<ElemDtype>(code >> 4 & 15);
  const int how = code >> 8 & 15;
  switch (code & 15) {
    case 1:
      return MxFormat{elem, static_cast<ScaleCalculationMode>(how)};
    case 2:
      return Float8Format{elem, static_cast<ScalingGranularity>(how), (code >> 12 & 1) != 0};
    default:
      return HighPrecision{};
  }
}

}  // namespace moe8::native
