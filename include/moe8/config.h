// SPDX-License-Identifier: BSD-3-Clause
// Configs and recipes: plain values that say which weights compute in which format. Making one
// never fails; every function that takes one validates it. Nothing here touches a tensor. What a
// config means operand by operand is the table in src/autograd/training_formats.cpp.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe8/formats.h"

namespace moe8 {

/// AUTO: the best kernel for this device, never an error because of the device.
/// EMULATED: the reference arithmetic, quantize-dequantize and a high-precision product.
enum class KernelPreference { AUTO, EMULATED };

/// Named FP8GroupedMMConfigs: "fp8_rowwise".
enum class FP8GroupedMMRecipe { FP8_ROWWISE };

/// Named MXFP8GroupedMMConfigs: "mxfp8_rceil", ... `moe8 recipes` says what each does.
enum class MXFP8GroupedMMRecipe {
  MXFP8_RCEIL,
  MXFP8_RCEIL_WGRAD_WITH_HP,
  MXFP8_EMULATED_RCEIL,
  MXFP8_FLOOR,
  MXFP8_FLOOR_WGRAD_WITH_HP,
};

/// Named MXLinearConfigs: "mxfp8_emulated", ... The CUBLAS and CUTLASS in the names are torchao's;
/// here they mean KernelPreference::AUTO.
enum class MXLinearRecipeName {
  MXFP8_EMULATED,
  MXFP8_CUBLAS,
  MXFP8_CUBLAS_RCEIL,
  MXFP4_EMULATED,
  MXFP4_CUTLASS,
};

/// Named Float8LinearConfigs: "tensorwise", "rowwise", "rowwise_with_gw_hp".
enum class Float8LinearRecipeName { TENSORWISE, ROWWISE, ROWWISE_WITH_GW_HP };

/// DYNAMIC: the scale follows from the tensor at hand. DISABLED: stay in high precision.
enum class ScalingType { DYNAMIC, DISABLED };

/// TENSORWISE: one scale per tensor. AXISWISE: one per row along the contracted axis.
enum class ScalingGranularity { TENSORWISE, AXISWISE };

/// Expert weights (E, N, K) in FP8 with one power-of-two scale per row of every operand.
struct FP8GroupedMMConfig {
  static constexpr bool kGrouped = true;     // for 3-D weights of experts
  at::ScalarType out_dtype = at::kBFloat16;  // bf16 or float32

  /// @throws c10::Error for a number that is no enumerator.
  static FP8GroupedMMConfig from_recipe(FP8GroupedMMRecipe recipe);
  /// @throws c10::Error "[FP8GroupedMMConfig] field: expected ..., got ...".
  void validate() const;
  bool operator==(const FP8GroupedMMConfig&) const = default;
};

/// Expert weights (E, N, K) in MXFP8: e4m3 with one e8m0 scale per 32 elements.
struct MXFP8GroupedMMConfig {
  static constexpr bool kGrouped = true;
  KernelPreference kernel_preference = KernelPreference::AUTO;
  at::ScalarType out_dtype = at::kBFloat16;  // bf16 or float32
  bool wgrad_with_hp = false;                // true: grad_W from unquantized operands
  ScaleCalculationMode scale_calculation_mode = ScaleCalculationMode::RCEIL;

  /// @throws c10::Error for a number that is no enumerator.
  static MXFP8GroupedMMConfig from_recipe(MXFP8GroupedMMRecipe recipe);
  /// @throws c10::Error "[MXFP8GroupedMMConfig] field: expected ..., got ...".
  void validate() const;
  bool operator==(const MXFP8GroupedMMConfig&) const = default;
};

/// Linear weights (N, K) in an MX format. Input, weight and grad_output may differ in format.
struct MXLinearConfig {
  static constexpr bool kGrouped = false;  // for 2-D weights of linears
  int64_t block_size = kMxBlock;           // no other
  ElemDtype elem_dtype = ElemDtype::E4M3;
  std::optional<ElemDtype> elem_dtype_weight_override = std::nullopt;
  std::optional<ElemDtype> elem_dtype_grad_output_override = std::nullopt;
  KernelPreference kernel_preference = KernelPreference::EMULATED;
  ScaleCalculationMode scale_calculation_mode = ScaleCalculationMode::FLOOR;

  /// @throws c10::Error for an unknown name; the message lists all of them.
  static MXLinearConfig from_recipe_name(MXLinearRecipeName recipe);
  static MXLinearConfig from_recipe_name(std::string_view recipe);
  /// @throws c10::Error "[MXLinearConfig] field: expected ..., got ...".
  void validate() const;
  bool operator==(const MXLinearConfig&) const = default;
};

/// How one operand of one GEMM is cast to FP8. A target_dtype that is not set is E5M2 for
/// grad_output, E4M3 for input and weight.
struct CastConfig {
  ScalingType scaling_type = ScalingType::DYNAMIC;
  ScalingGranularity scaling_granularity = ScalingGranularity::TENSORWISE;
  std::optional<ElemDtype> target_dtype = std::nullopt;  // E4M3 or E5M2

  bool operator==(const CastConfig&) const = default;
};

/// How one of the three GEMMs of a Float8 linear accumulates.
struct Float8GemmConfig {
  bool use_fast_accum = false;  // lets Hopper's tensor cores accumulate in about 14 bits

  bool operator==(const Float8GemmConfig&) const = default;
};

/// Linear weights (N, K) in FP8 with float32 scales. The six casts are those of the three GEMMs;
/// a *_for_grad_* cast that is not set equals the base cast of the same tensor.
struct Float8LinearConfig {
  static constexpr bool kGrouped = false;
  CastConfig cast_config_input = {};
  CastConfig cast_config_weight = {};
  CastConfig cast_config_grad_output = {};
  std::optional<CastConfig> cast_config_input_for_grad_weight = std::nullopt;
  std::optional<CastConfig> cast_config_weight_for_grad_input = std::nullopt;
  std::optional<CastConfig> cast_config_grad_output_for_grad_weight = std::nullopt;
  Float8GemmConfig gemm_config_output{.use_fast_accum = true};
  Float8GemmConfig gemm_config_grad_input = {};
  Float8GemmConfig gemm_config_grad_weight = {};
  bool round_scales_to_power_of_2 = false;
  bool emulate = false;

  /// @throws c10::Error for an unknown name; the message lists all of them.
  static Float8LinearConfig from_recipe_name(Float8LinearRecipeName recipe);
  static Float8LinearConfig from_recipe_name(std::string_view recipe);
  /// Of the two casts of one GEMM both are DISABLED or none; the two casts of one tensor have the
  /// same target_dtype.
  /// @throws c10::Error "[Float8LinearConfig] field: expected ..., got ...".
  void validate() const;
  /// Equal when they mean the same: what is not set equals what it stands for.
  bool operator==(const Float8LinearConfig& other) const;
};

/// What can be attached to a weight.
using Config =
    std::variant<FP8GroupedMMConfig, MXFP8GroupedMMConfig, MXLinearConfig, Float8LinearConfig>;

/// True for the configs of 3-D expert weights, false for those of linear weights.
bool is_grouped(const Config& config);

/// The config of a recipe of any family: "mxfp8_rceil", "mxfp8_cublas", "rowwise", ...
/// @throws c10::Error for an unknown name; the message lists all of them.
Config recipe(std::string_view name);

/// What a key of an FqnToConfig stands for: a config, the recipe of a name, or nothing ("leave
/// alone"). Made from any of them: {{"re:.*experts.*", "mxfp8_rceil"}, {"output", std::nullopt}}.
struct ConfigOrNone : std::optional<Config> {
  // NOLINTBEGIN(google-explicit-constructor)
  using std::optional<Config>::optional;
  ConfigOrNone(std::optional<Config> config) : optional(std::move(config)) {}
  /// @throws c10::Error for an unknown name; the message lists all of them.
  ConfigOrNone(std::string_view recipe_name) : optional(recipe(recipe_name)) {}
  ConfigOrNone(const char* recipe_name) : ConfigOrNone(std::string_view(recipe_name)) {}
  ConfigOrNone(const std::string& recipe_name) : ConfigOrNone(std::string_view(recipe_name)) {}
  ConfigOrNone(std::nullptr_t) = delete;
  // NOLINTEND(google-explicit-constructor)
};

/// A recipe as `moe8 recipes` lists it.
struct RecipeInfo {
  std::string name;         // "mxfp8_rceil"
  std::string applies_to;   // "experts" or "linear"
  std::string description;  // one line
  Config config;
};

/// Every recipe there is, in the order in which `moe8 recipes` prints them.
const std::vector<RecipeInfo>& all_recipes();

/// Sets one field by its name, from text: set_field(config, "scale_calculation_mode", "floor").
/// A cast is "disabled", "tensorwise", "axiswise", or one of the latter with its target_dtype:
/// "tensorwise:float8_e5m2"; a field that is optional can be "none".
/// What fields demand of each other is checked by validate(), once all are set.
/// @throws c10::Error naming the field or value and the allowed ones.
void set_field(Config& config, std::string_view field, std::string_view value);

/// The validate() of whichever config it is.
/// @throws c10::Error naming field, value and the allowed ones.
void validate(const Config& config);

/// One line, e.g. "MXFP8GroupedMMConfig(kernel_preference=auto, out_dtype=bfloat16, ...)". Casts
/// that are not set are printed as what they stand for.
std::string to_string(const Config& config);

/// The name of an enumerator as configs write it: "rceil", "mxfp8_rceil", "axiswise"; of an element
/// format torch's: "float8_e4m3fn". "invalid" for a number that is no enumerator.
std::string_view to_string(ElemDtype value);
std::string_view to_string(KernelPreference value);
std::string_view to_string(ScaleCalculationMode value);
std::string_view to_string(FP8GroupedMMRecipe value);
std::string_view to_string(MXFP8GroupedMMRecipe value);
std::string_view to_string(MXLinearRecipeName value);
std::string_view to_string(Float8LinearRecipeName value);
std::string_view to_string(ScalingType value);
std::string_view to_string(ScalingGranularity value);

/// The enumerator with this string, the inverse of to_string; for each enum that to_string takes.
/// @throws c10::Error listing the valid ones.
template <typename Enum>
Enum parse(std::string_view text);

}  // namespace moe8

/// Equal configs have equal hashes.
template <>
struct std::hash<moe8::FP8GroupedMMConfig> {
  size_t operator()(const moe8::FP8GroupedMMConfig& config) const;
};
template <>
struct std::hash<moe8::MXFP8GroupedMMConfig> {
  size_t operator()(const moe8::MXFP8GroupedMMConfig& config) const;
};
template <>
struct std::hash<moe8::MXLinearConfig> {
  size_t operator()(const moe8::MXLinearConfig& config) const;
};
template <>
struct std::hash<moe8::Float8LinearConfig> {
  size_t operator()(const moe8::Float8LinearConfig& config) const;
};
