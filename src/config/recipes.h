// SPDX-License-Identifier: BSD-3-Clause
// The recipes: one row each. Everything that knows a recipe by name reads these tables.
#pragma once

#include <string_view>

#include "config/names.h"
#include "moe8/config.h"

namespace moe8 {

template <typename Recipe, typename C>
struct RecipeRow {
  Recipe value;
  std::string_view name;
  std::string_view description;  // one line
  C config;
};

template <>
struct EnumNames<FP8GroupedMMRecipe> {
  using enum FP8GroupedMMRecipe;
  static constexpr const char* word = "recipe";
  static constexpr RecipeRow<FP8GroupedMMRecipe, FP8GroupedMMConfig> list[] = {
      {FP8_ROWWISE, "fp8_rowwise", "e4m3, a power-of-two scale per row of every operand", {}},
  };
};

template <>
struct EnumNames<MXFP8GroupedMMRecipe> {
  using enum MXFP8GroupedMMRecipe;
  static constexpr const char* word = "recipe";
  static constexpr RecipeRow<MXFP8GroupedMMRecipe, MXFP8GroupedMMConfig> list[] = {
      {MXFP8_RCEIL, "mxfp8_rceil", "e4m3, a scale per 32 elements, rounded up: no saturation", {}},
      {MXFP8_RCEIL_WGRAD_WITH_HP,
       "mxfp8_rceil_wgrad_with_hp",
       "as mxfp8_rceil, grad_W unquantized",
       {.wgrad_with_hp = true}},
      {MXFP8_EMULATED_RCEIL,
       "mxfp8_emulated_rceil",
       "as mxfp8_rceil, reference arithmetic everywhere",
       {.kernel_preference = KernelPreference::EMULATED}},
      {MXFP8_FLOOR,
       "mxfp8_floor",
       "e4m3, a scale per 32 elements, rounded down: may saturate",
       {.scale_calculation_mode = ScaleCalculationMode::FLOOR}},
      {MXFP8_FLOOR_WGRAD_WITH_HP,
       "mxfp8_floor_wgrad_with_hp",
       "as mxfp8_floor, grad_W unquantized",
       {.wgrad_with_hp = true, .scale_calculation_mode = ScaleCalculationMode::FLOOR}},
  };
};

template <>
struct EnumNames<MXLinearRecipeName> {
  using enum MXLinearRecipeName;
  static constexpr const char* word = "recipe";
  static constexpr RecipeRow<MXLinearRecipeName, MXLinearConfig> list[] = {
      {MXFP8_EMULATED, "mxfp8_emulated", "MX e4m3, floor scales, reference arithmetic", {}},
      {MXFP8_CUBLAS,
       "mxfp8_cublas",
       "MX e4m3, floor scales, the best kernel of the device",
       {.kernel_preference = KernelPreference::AUTO}},
      {MXFP8_CUBLAS_RCEIL,
       "mxfp8_cublas_rceil",
       "MX e4m3, scales rounded up, the best kernel",
       {.kernel_preference = KernelPreference::AUTO,
        .scale_calculation_mode = ScaleCalculationMode::RCEIL}},
      {MXFP4_EMULATED,
       "mxfp4_emulated",
       "MX e2m1, floor scales, reference arithmetic",
       {.elem_dtype = ElemDtype::E2M1}},
      {MXFP4_CUTLASS,
       "mxfp4_cutlass",
       "MX e2m1, floor scales, the best kernel of the device",
       {.elem_dtype = ElemDtype::E2M1, .kernel_preference = KernelPreference::AUTO}},
  };
};

template <>
struct EnumNames<Float8LinearRecipeName> {
  using enum Float8LinearRecipeName;
  static constexpr const char* word = "recipe";
  static constexpr CastConfig kRow{.scaling_granularity = ScalingGranularity::AXISWISE,
                                   .target_dtype = ElemDtype::E4M3};
  static constexpr CastConfig kTensor{.target_dtype = ElemDtype::E4M3};
  static constexpr CastConfig kOff{.scaling_type = ScalingType::DISABLED};
  static constexpr RecipeRow<Float8LinearRecipeName, Float8LinearConfig> list[] = {
      {TENSORWISE, "tensorwise", "e4m3 (gradients e5m2), one float32 scale per tensor", {}},
      {ROWWISE,
       "rowwise",
       "e4m3, a power-of-two scale per row of every operand",
       {.cast_config_input = kRow,
        .cast_config_weight = kRow,
        .cast_config_grad_output = kRow,
        .round_scales_to_power_of_2 = true}},
      {ROWWISE_WITH_GW_HP,
       "rowwise_with_gw_hp",
       "as rowwise, grad_W unquantized",
       {.cast_config_input = kRow,
        .cast_config_weight = kRow,
        .cast_config_grad_output = kRow,
        .cast_config_input_for_grad_weight = kOff,
        .cast_config_weight_for_grad_input = kTensor,
        .cast_config_grad_output_for_grad_weight = kOff,
        .round_scales_to_power_of_2 = true}},
  };
};

}  // namespace moe8
