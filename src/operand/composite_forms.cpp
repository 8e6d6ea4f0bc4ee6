// SPDX-License-Identifier: BSD-3-Clause
#include "operand/composite_forms.h"

#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>

#include "base/check.h"
#include "base/overloaded.h"
#include "moe8/float8.h"
#include "quantize/both_axes.h"

namespace moe8 {
namespace {

// ---- values -----------------------------------------------------------------
// Along the last axis and the one before in one call, where the format is quantized by axis.
std::optional<BothAxes> values_along_both(const at::Tensor& x, const OperandFormat& format,
                                          const std::optional<at::Tensor>& offs,
                                          at::ScalarType dtype) {
  using Both = std::optional<BothAxes>;
  return std::visit(Overloaded{[](const HighPrecision&) -> Both { return std::nullopt; },
                               [&](const MxFormat& f) -> Both {
                                 return fake_quantize_mx_both(x, f.elem, f.mode, offs, dtype);
                               },
                               [&](const Float8Format& f) -> Both {
                                 if (f.granularity == ScalingGranularity::TENSORWISE)
                                   return std::nullopt;
                                 return fake_quantize_float8_both(
                                     x, f.elem, f.round_scales_to_power_of_2, offs, dtype);
                               }},
                    format);
}

// ---- FP8 codes --------------------------------------------------------------
// Whole 16 bytes from one row to the next, as matrix products ask for; zeros fill them up.
at::Tensor with_code_pitch(const at::Tensor& codes) {
  constexpr int64_t kBytes = 16;
  return at::constant_pad_nd(codes, {0, (kBytes - codes.size(-1) % kBytes) % kBytes});
}

Form make_codes(const at::Tensor& source, const FormKey& key) {
  const auto* format = std::get_if<Float8Format>(&key.format);
  MOE8_CHECK(format, "low_precision_gemm", "operand", "expected an FP8 format to encode, got ",
             to_string(key.format), ". This is a defect of moe8");
  const bool whole = format->granularity == ScalingGranularity::TENSORWISE;
  const Float8Tensor made = quantize_float8(
      source, whole ? Float8Granularity::tensorwise() : Float8Granularity::axiswise(key.axis),
      format->elem, format->round_scales_to_power_of_2);
  const int64_t last = source.dim() - 1;
  const at::Tensor codes = made.data.view(at::kByte);
  std::vector<int64_t> scale_sizes = source.sizes().vec();  // but the contracted axis
  scale_sizes.erase(scale_sizes.begin() + key.axis);
  const at::Tensor inverse = made.scale.reciprocal();
  return {key,
          with_code_pitch(key.axis == last ? codes : codes.transpose(last - 1, last)).contiguous(),
          whole ? inverse.expand(scale_sizes).contiguous() : inverse.reshape(scale_sizes)};
}

// ---- all --------------------------------------------------------------------
bool contains(const std::vector<FormKey>& keys, const FormKey& key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

}  // namespace

std::vector<Form> make_composite_forms(const at::Tensor& source, const std::vector<FormKey>& keys,
                                       const TokenGroups& groups) {
  const int64_t last = source.dim() - 1;
  const std::optional<at::Tensor> offs = source.dim() == 2 ? groups.offs() : std::nullopt;
  std::vector<Form> forms;
  for (const FormKey& key : keys) {
    const auto is_made = [&](const Form& form) { return form.key == key; };
    if (std::any_of(forms.begin(), forms.end(), is_made)) continue;
    const std::optional<at::Tensor> groups_along = key.axis == 0 ? offs : std::nullopt;
    if (key.encoding == Encoding::FLOAT8) {
      MOE8_CHECK(!groups_along, "low_precision_gemm", "operand",
                 "expected no codes along the rows of groups. This is a defect of moe8");
      forms.push_back(make_codes(source, key));
      continue;
    }
    const at::ScalarType dtype = dtype_of(key.encoding);
    const FormKey along_last{key.format, last, key.encoding};
    const FormKey before_last{key.format, last - 1, key.encoding};
    if (contains(keys, along_last) && contains(keys, before_last)) {
      if (auto both = values_along_both(source, key.format, offs, dtype)) {
        forms.push_back({along_last, both->last, {}});
        forms.push_back({before_last, both->before_last, {}});
        continue;
      }
    }
    forms.push_back({key, operand_values(source, key.format, key.axis, groups_along, dtype), {}});
  }
  return forms;
}

}  // namespace moe8
