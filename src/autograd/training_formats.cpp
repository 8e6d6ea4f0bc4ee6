// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/training_formats.h"

#include <variant>

#include "base/overloaded.h"
#include "config/filled.h"

namespace moe8 {
namespace {

TrainingFormats formats_of(const FP8GroupedMMConfig&) {
  const OperandFormat row = Float8Format{ElemDtype::E4M3, ScalingGranularity::AXISWISE, true};
  return {.out = {row, row, /*use_fast_accum=*/true},
          .grad_input = {row, row, /*use_fast_accum=*/true},
          .grad_weight = {row, row}};
}

TrainingFormats formats_of(const MXFP8GroupedMMConfig& c) {
  const OperandFormat mx = MxFormat{ElemDtype::E4M3, c.scale_calculation_mode};
  const OperandFormat for_grad_weight = c.wgrad_with_hp ? OperandFormat{HighPrecision{}} : mx;
  return {.out = {mx, mx},
          .grad_input = {mx, mx},
          .grad_weight = {for_grad_weight, for_grad_weight},
          .kernel_preference = c.kernel_preference};
}

TrainingFormats formats_of(const MXLinearConfig& c) {
  const auto mx = [&](std::optional<ElemDtype> override) -> OperandFormat {
    return MxFormat{override.value_or(c.elem_dtype), c.scale_calculation_mode};
  };
  const OperandFormat input = mx(std::nullopt);
  const OperandFormat weight = mx(c.elem_dtype_weight_override);
  const OperandFormat grad_output = mx(c.elem_dtype_grad_output_override);
  return {.out = {input, weight},
          .grad_input = {grad_output, weight},
          .grad_weight = {grad_output, input},
          .kernel_preference = c.kernel_preference};
}

TrainingFormats formats_of(const Float8LinearConfig& config) {
  const Float8LinearConfig c = filled(config);
  const auto format = [&](const CastConfig& cast) -> OperandFormat {
    if (cast.scaling_type == ScalingType::DISABLED) return HighPrecision{};
    return Float8Format{*cast.target_dtype, cast.scaling_granularity, c.round_scales_to_power_of_2};
  };
  return {.out = {format(c.cast_config_input), format(c.cast_config_weight),
                  c.gemm_config_output.use_fast_accum},
          .grad_input = {format(c.cast_config_grad_output),
                         format(*c.cast_config_weight_for_grad_input),
                         c.gemm_config_grad_input.use_fast_accum},
          .grad_weight = {format(*c.cast_config_grad_output_for_grad_weight),
                          format(*c.cast_config_input_for_grad_weight),
                          c.gemm_config_grad_weight.use_fast_accum},
          .kernel_preference = c.emulate ? KernelPreference::EMULATED : KernelPreference::AUTO};
}

}  // namespace

TrainingFormats training_formats(const Config& config) {
  return std::visit([](const auto& c) { return formats_of(c); }, config);
}

at::ScalarType out_dtype_of(const Config& config, at::ScalarType input) {
  return std::visit(Overloaded{[](const FP8GroupedMMConfig& c) { return c.out_dtype; },
                               [](const MXFP8GroupedMMConfig& c) { return c.out_dtype; },
                               [&](const MXLinearConfig&) { return input; },
                               [&](const Float8LinearConfig&) { return input; }},
                    config);
}

}  // namespace moe8
