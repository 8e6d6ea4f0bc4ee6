// SPDX-License-Identifier: BSD-3-Clause
// Which forms of what a stage makes are written by the stage itself, on a GPU: as FP8 codes or as MX
// values. Others are made of values in bf16. Without tensors, so that C++ (cuda_stages.cpp) and the
// Python package (python/native/) decide alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "moe8/formats.h"
#include "operand/operand_format.h"

namespace moe8 {

/// A form that a product will read of a matrix.
struct StageForm {
  OperandFormat format;
  bool is_by_rows;   // quantized along rows; else along columns, within groups
  bool reads_codes;  // FP8 codes
  bool reads_bf16;   // values in bf16
};
using StageForms = std::vector<StageForm>;

inline bool is_high_precision(const StageForm& form) {
  return std::holds_alternative<HighPrecision>(form.format);
}

/// Whether one of the forms is along rows, or along columns.
inline bool has_form(const StageForms& forms, bool is_by_rows) {
  return std::any_of(forms.begin(), forms.end(),
                     [&](const StageForm& f) { return f.is_by_rows == is_by_rows; });
}

/// The format of codes whose scales may be shifted, one per row or column; null: another form.
inline const Float8Format* shiftable_codes(const StageForm& form) {
  const auto* format = std::get_if<Float8Format>(&form.format);
  const bool is = format != nullptr && form.reads_codes &&
                  format->granularity == ScalingGranularity::AXISWISE &&
                  format->round_scales_to_power_of_2;
  return is ? format : nullptr;
}

/// The one format in which a stage writes all forms as codes; nothing: it gives the values.
/// @param columns_of_rows  codes along columns are made of those along rows
inline std::optional<Float8Format> stage_codes(const StageForms& forms, bool columns_of_rows) {
  if (forms.empty()) return std::nullopt;
  const Float8Format* const first = shiftable_codes(forms.front());
  for (const StageForm& form : forms) {
    const Float8Format* const format = shiftable_codes(form);
    if (first == nullptr || format == nullptr || !(*format == *first)) return std::nullopt;
    if (!form.is_by_rows && !columns_of_rows) return std::nullopt;
  }
  return *first;
}

/// The one MX format of forms that the kernels of cuda/experts/mx_rows.h write, rows as they are
/// beside them; nothing where there is none, or a form that they do not write.
inline std::optional<MxFormat> stage_mx(const StageForms& forms) {
  std::optional<MxFormat> format;
  for (const StageForm& form : forms) {
    if (!form.reads_bf16) return std::nullopt;
    if (is_high_precision(form)) continue;
    const auto* mx = std::get_if<MxFormat>(&form.format);
    if (mx == nullptr || mx->elem != ElemDtype::E4M3) return std::nullopt;
    if (format && !(*format == *mx)) return std::nullopt;
    format = *mx;
  }
  return format;
}

/// The same of all that the activation makes: `of_hidden_grad` are the forms of dH, `forms` those
/// of A or A'. The kernels read h in whole 16 bytes, and blocks along the rows of dH must not hold
/// gates and ups.
inline std::optional<MxFormat> activation_mx(int64_t h, bool is_interleaved, StageForms forms,
                                             const StageForms& of_hidden_grad = {}) {
  if (h % 8 != 0) return std::nullopt;
  const bool splits_blocks = !is_interleaved && h % kMxBlock != 0;
  if (splits_blocks && has_form(of_hidden_grad, /*is_by_rows=*/true)) return std::nullopt;
  forms.insert(forms.end(), of_hidden_grad.begin(), of_hidden_grad.end());
  return stage_mx(forms);
}

/// Why the kernels do not take a layer with hidden rows of this dtype; null: they do.
inline const char* hidden_refusal(at::ScalarType hidden_dtype) {
  return hidden_dtype == at::kBFloat16 ? nullptr : "hidden rows are not bfloat16";
}

}  // namespace moe8
