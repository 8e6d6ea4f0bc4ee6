// SPDX-License-Identifier: BSD-3-Clause
#include "operand/operand_format.h"

#include "base/overloaded.h"
#include "base/plain_text.h"

namespace moe8 {

std::string to_string(const OperandFormat& format) {
  return std::visit(Overloaded{[](const HighPrecision&) -> std::string { return "high precision"; },
                               [](const MxFormat& f) {
                                 return concat("mx ", to_string(f.elem), " ", to_string(f.mode));
                               },
                               [](const Float8Format& f) {
                                 return concat(to_string(f.elem), " ", to_string(f.granularity),
                                               f.round_scales_to_power_of_2 ? " pow2" : "");
                               }},
                    format);
}

bool values_fit_bf16(const OperandFormat& format, at::ScalarType source) {
  return std::visit(Overloaded{[&](const HighPrecision&) { return source == at::kBFloat16; },
                               [](const MxFormat&) { return true; },
                               [](const Float8Format& f) { return f.round_scales_to_power_of_2; }},
                    format);
}

}  // namespace moe8
