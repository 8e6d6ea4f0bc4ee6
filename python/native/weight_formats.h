// SPDX-License-Identifier: BSD-3-Clause
// In which formats the three products of a weight read their operands on a GPU. Without CUDA.
#pragma once

#include <cstdint>
#include <variant>

#include "experts/stage_forms.h"
#include "format_code.h"
#include "kernels/gemm.h"
#include "operand/operand_format.h"

namespace moe8::native {

/// Numbers of format_code.h by product, in the order of Gemm.
struct WeightFormats {
  const int32_t* left_codes;
  const int32_t* right_codes;

  OperandFormat left(Gemm gemm) const { return decode_format(left_codes[static_cast<int>(gemm)]); }
  OperandFormat right(Gemm gemm) const {
    return decode_format(right_codes[static_cast<int>(gemm)]);
  }

  /// Else bf16 values. E5M2 on the right is no kernel's.
  bool reads_codes(Gemm gemm) const {
    const OperandFormat l = left(gemm), r = right(gemm);
    const auto* of_right = std::get_if<Float8Format>(&r);
    return std::holds_alternative<Float8Format>(l) && of_right != nullptr &&
           of_right->elem == ElemDtype::E4M3;
  }

  /// What the product reads on the left: rows of tokens.
  StageForm left_form(Gemm gemm) const {
    return {left(gemm), gemm != Gemm::GRAD_WEIGHT, reads_codes(gemm), !reads_codes(gemm)};
  }
  /// What the weight's gradient reads on the right: rows of tokens as well.
  StageForm right_form_of_gradient() const {
    const bool codes = reads_codes(Gemm::GRAD_WEIGHT);
    return {right(Gemm::GRAD_WEIGHT), false, codes, !codes};
  }
};

}  // namespace moe8::native
