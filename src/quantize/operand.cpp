// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/operand.h"

#include <c10/util/StringUtil.h>

#include "moe8/float8.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};

}  // namespace

std::string to_string(const OperandFormat& format) {
  return std::visit(Overloaded{[](const HighPrecision&) -> std::string { return "high precision"; },
                               [](const MxFormat& f) {
                                 return c10::str("mx ", to_string(f.elem), " ", to_string(f.mode));
                               },
                               [](const Float8Format& f) {
                                 return c10::str(to_string(f.elem), " ", to_string(f.granularity),
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

at::Tensor operand_values(const at::Tensor& x, const OperandFormat& format, int64_t axis,
                          const std::optional<at::Tensor>& offs, at::ScalarType dtype) {
  return std::visit(
      Overloaded{
          [&](const HighPrecision&) { return x.detach().to(dtype).contiguous(); },
          [&](const MxFormat& f) { return fake_quantize_mx(x, f.elem, f.mode, axis, offs, dtype); },
          [&](const Float8Format& f) {
            const bool whole = f.granularity == ScalingGranularity::TENSORWISE;
            return fake_quantize_float8(
                x, whole ? Float8Granularity::tensorwise() : Float8Granularity::axiswise(axis),
                f.elem, f.round_scales_to_power_of_2, whole ? std::nullopt : offs, dtype);
          }},
      format);
}

}  // namespace moe8
