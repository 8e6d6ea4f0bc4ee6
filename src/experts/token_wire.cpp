// SPDX-License-Identifier: BSD-3-Clause
#include "experts/token_wire.h"

#include <utility>

#include "autograd/training_formats.h"
#include "moe8/float8.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr int64_t kAlongRow = 1;

at::Tensor as_bytes(const at::Tensor& t) {
  return t.contiguous().view(at::kByte);
}

// The operand along rows, and the one that the gradient of the weight reads along columns.
std::pair<OperandFormat, OperandFormat> formats_of(const Config& config, RowsOf which) {
  const TrainingFormats formats = training_formats(config);
  if (which == RowsOf::INPUT) return {formats.out.left, formats.grad_weight.right};
  return {formats.grad_input.left, formats.grad_weight.left};
}

}  // namespace

RowCode::RowCode(int64_t columns, at::ScalarType dtype, const Config& config, RowsOf which)
    : columns_(columns), dtype_(dtype), format_(formats_of(config, which).first) {}

std::optional<std::string> RowCode::refusal(const Config& config, RowsOf which) {
  const auto [by_rows, by_columns] = formats_of(config, which);
  if (std::holds_alternative<HighPrecision>(by_columns)) {
    return "the gradients of its weights read these rows in high precision";
  }
  if (const auto* f = std::get_if<Float8Format>(&by_rows)) {
    if (f->granularity == ScalingGranularity::AXISWISE && f->round_scales_to_power_of_2) {
      return std::nullopt;
    }
    return "its scales are no powers of two per row";
  }
  const auto* mx = std::get_if<MxFormat>(&by_rows);
  if (!mx) return "its product reads these rows in high precision";
  if (mx->elem != ElemDtype::E4M3 && mx->elem != ElemDtype::E5M2) {
    return "its codes are no bytes";
  }
  return std::nullopt;
}

int64_t RowCode::scale_bytes() const {
  if (is_values()) return 0;
  if (std::holds_alternative<Float8Format>(format_)) return sizeof(float);
  return (columns_ + kMxBlock - 1) / kMxBlock;
}

EncodedRows RowCode::encode(const at::Tensor& x) const {
  if (const auto* f = std::get_if<Float8Format>(&format_)) {
    const Float8Tensor coded =
        quantize_float8(x, Float8Granularity::axiswise(kAlongRow), f->elem, true);
    return {as_bytes(coded.data), as_bytes(coded.scale)};
  }
  if (const auto* f = std::get_if<MxFormat>(&format_)) {
    const MXTensor coded = quantize_mx(x, f->elem, f->mode, kAlongRow);
    return {as_bytes(coded.data), as_bytes(coded.scale)};
  }
  return {as_bytes(x), {}};
}

at::Tensor RowCode::decode(const EncodedRows& rows) const {
  const auto codes = [&](ElemDtype elem) {
    return rows.data.view(elem == ElemDtype::E4M3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2);
  };
  if (const auto* f = std::get_if<Float8Format>(&format_)) {
    return dequantize(Float8Tensor{.data = codes(f->elem),
                                   .scale = rows.scale.view(at::kFloat),
                                   .elem = f->elem,
                                   .granularity = Float8Granularity::axiswise(kAlongRow),
                                   .round_scales_to_power_of_2 = true,
                                   .orig_dtype = dtype_,
                                   .offs = std::nullopt});
  }
  if (const auto* f = std::get_if<MxFormat>(&format_)) {
    return dequantize(MXTensor{.data = codes(f->elem),
                               .scale = rows.scale.view(at::kFloat8_e8m0fnu),
                               .elem = f->elem,
                               .axis = kAlongRow,
                               .orig_dtype = dtype_,
                               .shape = {rows.data.size(0), columns_},
                               .offs = std::nullopt});
  }
  return rows.data.view(dtype_);
}

}  // namespace moe8
