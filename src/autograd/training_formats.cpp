// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/training_formats.h"

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

TrainingFormats formats_of(const Float8LinearConfig& c) {
  const auto cast = [&](const std::optional<CastConfig>& chosen,
                        const CastConfig& base) -> OperandFormat {
    const CastConfig& config = chosen ? *chosen : base;
    if (config.scaling_type == ScalingType::DISABLED) return HighPrecision{};
    return Float8Format{config.target_dtype, config.scaling_granularity,
                        c.round_scales_to_power_of_2};
  };
  const auto base = [&](const CastConfig& config) { return cast(std::nullopt, config); };
  return {
      .out = {base(c.cast_config_input), base(c.cast_config_weight),
              c.gemm_config_output.use_fast_accum},
      .grad_input = {base(c.cast_config_grad_output),
                     cast(c.cast_config_weight_for_grad_input, c.cast_config_weight),
                     c.gemm_config_grad_input.use_fast_accum},
      .grad_weight = {cast(c.cast_config_grad_output_for_grad_weight, c.cast_config_grad_output),
                      cast(c.cast_config_input_for_grad_weight, c.cast_config_input),
                      c.gemm_config_grad_weight.use_fast_accum},
      .kernel_preference = c.emulate ? KernelPreference::EMULATED : KernelPreference::AUTO};
}

}  // namespace

TrainingFormats training_formats(const Config& config) {
  return std::visit([](const auto& c) { return formats_of(c); }, config);
}

}  // namespace moe8
