// SPDX-License-Identifier: BSD-3-Clause
// The fields of every config, and what each may be for itself. Text, hashes, conversion files and
// checks all read these lists. What fields demand of each other is in config.cpp.
#pragma once

#include <optional>
#include <string>
#include <type_traits>

#include "config/names.h"
#include "moe8/config.h"

namespace moe8 {

// ---- rules: allows(value), and expected() in words --------------------------
// NOLINTBEGIN(readability-convert-member-functions-to-static): some rules have values
/// Whatever its type can hold.
struct Any {
  template <typename T>
  bool allows(const T&) const {
    return true;
  }
  std::string expected() const { return "anything"; }
};

/// A number that is an enumerator.
template <typename Enum>
struct Named {
  bool allows(Enum value) const { return name_of(value) != "invalid"; }
  bool allows(std::optional<Enum> value) const { return !value || allows(*value); }
  std::string expected() const { return "one of " + choices<Enum>(); }
};

struct Exactly {
  int64_t only;
  const char* reason;

  bool allows(int64_t value) const { return value == only; }
  std::string expected() const { return std::to_string(only) + " (" + reason + ")"; }
};

struct OutDtype {
  bool allows(at::ScalarType value) const { return value == at::kBFloat16 || value == at::kFloat; }
  std::string expected() const { return "bfloat16 or float32"; }
};

struct Float8Cast {
  bool allows(const CastConfig& cast) const {
    const Named<ScalingType> type;
    const Named<ScalingGranularity> granularity;
    const ElemDtype dtype = cast.target_dtype.value_or(ElemDtype::E4M3);
    return type.allows(cast.scaling_type) && granularity.allows(cast.scaling_granularity) &&
           (dtype == ElemDtype::E4M3 || dtype == ElemDtype::E5M2);
  }
  bool allows(const std::optional<CastConfig>& cast) const { return !cast || allows(*cast); }
  std::string expected() const {
    return "disabled, tensorwise or axiswise, with target_dtype float8_e4m3fn or float8_e5m2";
  }
};
// NOLINTEND(readability-convert-member-functions-to-static)

// ---- fields: visit(config, f) calls f(name, field, rule) for each -----------
template <typename C>
struct Fields;

template <>
struct Fields<FP8GroupedMMConfig> {
  static constexpr const char* type = "FP8GroupedMMConfig";
  template <typename C, typename F>
  static void visit(C& c, F&& f) {
    f("out_dtype", c.out_dtype, OutDtype{});
  }
};

template <>
struct Fields<MXFP8GroupedMMConfig> {
  static constexpr const char* type = "MXFP8GroupedMMConfig";
  template <typename C, typename F>
  static void visit(C& c, F&& f) {
    f("kernel_preference", c.kernel_preference, Named<KernelPreference>{});
    f("out_dtype", c.out_dtype, OutDtype{});
    f("wgrad_with_hp", c.wgrad_with_hp, Any{});
    f("scale_calculation_mode", c.scale_calculation_mode, Named<ScaleCalculationMode>{});
  }
};

template <>
struct Fields<MXLinearConfig> {
  static constexpr const char* type = "MXLinearConfig";
  template <typename C, typename F>
  static void visit(C& c, F&& f) {
    const Named<ElemDtype> elem;
    f("block_size", c.block_size, Exactly{kMxBlock, "the block of OCP MX v1.0"});
    f("elem_dtype", c.elem_dtype, elem);
    f("elem_dtype_weight_override", c.elem_dtype_weight_override, elem);
    f("elem_dtype_grad_output_override", c.elem_dtype_grad_output_override, elem);
    f("kernel_preference", c.kernel_preference, Named<KernelPreference>{});
    f("scale_calculation_mode", c.scale_calculation_mode, Named<ScaleCalculationMode>{});
  }
};

template <>
struct Fields<Float8LinearConfig> {
  static constexpr const char* type = "Float8LinearConfig";
  template <typename C, typename F>
  static void visit(C& c, F&& f) {
    const Float8Cast cast;
    f("cast_config_input", c.cast_config_input, cast);
    f("cast_config_weight", c.cast_config_weight, cast);
    f("cast_config_grad_output", c.cast_config_grad_output, cast);
    f("cast_config_input_for_grad_weight", c.cast_config_input_for_grad_weight, cast);
    f("cast_config_weight_for_grad_input", c.cast_config_weight_for_grad_input, cast);
    f("cast_config_grad_output_for_grad_weight", c.cast_config_grad_output_for_grad_weight, cast);
    f("gemm_config_output", c.gemm_config_output, Any{});
    f("gemm_config_grad_input", c.gemm_config_grad_input, Any{});
    f("gemm_config_grad_weight", c.gemm_config_grad_weight, Any{});
    f("round_scales_to_power_of_2", c.round_scales_to_power_of_2, Any{});
    f("emulate", c.emulate, Any{});
  }
};

template <typename C>
using FieldsOf = Fields<std::remove_cvref_t<C>>;

// ---- a whole config ---------------------------------------------------------
/// Each field for itself. Every call of an operation validates, so a text is made only to refuse.
/// @throws c10::Error "[MXLinearConfig] block_size: expected 32 (...), got 16".
template <typename C>
void check_fields(const C& config);

/// "axiswise:float8_e4m3fn", "tensorwise" when the dtype is not set, "disabled".
std::string to_string(const CastConfig& cast);

}  // namespace moe8
