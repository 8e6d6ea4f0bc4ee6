// SPDX-License-Identifier: BSD-3-Clause
// Whether a layer of experts is computed by the kernels of src/cuda/experts/, and what its forward
// keeps for its backward. Without CUDA: a CPU can be asked as well.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "experts/stage_forms.h"
#include "formats/code_pitch.h"
#include "weight_formats.h"

namespace moe8::native {

/// What the decision depends on, beside the device.
struct FusedCall {
  WeightFormats formats13, formats2;
  at::ScalarType x, w13, w2;    // of tokens and weights
  at::ScalarType hidden_dtype;  // of the hidden rows
};

namespace fused {
// An operand that a product reads as it is must be bf16.
inline std::optional<std::string> as_it_is(const char* name, at::ScalarType dtype,
                                           const OperandFormat& format) {
  if (!std::holds_alternative<HighPrecision>(format) || dtype == at::kBFloat16) return std::nullopt;
  return std::string(name) + " is not bfloat16, and a product reads it as it is";
}
}  // namespace fused

/// Why not, in words; nothing: it is.
inline std::optional<std::string> fused_refusal(const FusedCall& call) {
  if (const char* refusal = hidden_refusal(call.hidden_dtype)) return refusal;
  struct Read {
    const char* name;
    at::ScalarType dtype;
    OperandFormat format;
  };
  const WeightFormats &of13 = call.formats13, &of2 = call.formats2;
  const Read reads[] = {{"x", call.x, of13.left(Gemm::OUT)},
                        {"x", call.x, of13.right(Gemm::GRAD_WEIGHT)},
                        {"the gradient of the result", call.x, of2.left(Gemm::GRAD_INPUT)},
                        {"the gradient of the result", call.x, of2.left(Gemm::GRAD_WEIGHT)},
                        {"w1", call.w13, of13.right(Gemm::OUT)},
                        {"w1", call.w13, of13.right(Gemm::GRAD_INPUT)},
                        {"w2", call.w2, of2.right(Gemm::OUT)},
                        {"w2", call.w2, of2.right(Gemm::GRAD_INPUT)}};
  for (const Read& read : reads) {
    if (auto refusal = fused::as_it_is(read.name, read.dtype, read.format)) return refusal;
  }
  return std::nullopt;
}

/// Whether forward keeps the codes of x, from which the gradient of W13 is computed, instead of x.
inline bool keeps_codes(const WeightFormats& formats13) {
  const auto forward = stage_codes({formats13.left_form(Gemm::OUT)}, true);
  const auto backward = stage_codes({formats13.right_form_of_gradient()}, true);
  return forward && backward && *forward == *backward;
}

/// Where things lie in the memory that a forward leaves for its backward: offsets in bytes, each a
/// multiple of 16. T tokens, k experts each, R = T k rows. python/moe8/_fused.py knows the sizes too.
struct KeptLayout {
  int64_t codes = 0;  // of x: uint8 [T, pitch]; of no bytes where they are not kept
  int64_t scale = 0;  // of codes: float32 [T]
  int64_t amax = 0;   // of the columns of the codes: float32 bits [E, d]
  int64_t slot_of_row = 0, row_of_slot = 0;  // int32 [R]
  int64_t offs = 0;                          // int32 [E]
  int64_t bytes = 0;

  static KeptLayout of(int64_t tokens, int64_t top_k, int64_t columns, int64_t experts,
                       bool keeps_codes) {
    const auto words = [](int64_t count) { return (count + 3) / 4 * 16; };
    KeptLayout at;
    at.scale = keeps_codes ? tokens * code_pitch(columns) : 0;
    at.amax = at.scale + (keeps_codes ? words(tokens) : 0);
    at.slot_of_row = at.amax + (keeps_codes ? words(experts * columns) : 0);
    at.row_of_slot = at.slot_of_row + words(tokens * top_k);
    at.offs = at.row_of_slot + words(tokens * top_k);
    at.bytes = at.offs + words(experts);
    return at;
  }
};

}  // namespace moe8::native
