// SPDX-License-Identifier: BSD-3-Clause
// Everything a config is apart from its arithmetic: names, fields, recipes, checks. One table each.
#include "moe8/config.h"

#include <tuple>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "base/nearest.h"

namespace moe8 {
namespace {

// ---- names of enumerators ---------------------------------------------------
template <typename Enum>
struct Names;  // list: (enumerator, its string), what: the word for messages

#define MOE8_NAMES(Enum, word, ...)                                            \
  template <>                                                                  \
  struct Names<Enum> {                                                         \
    static constexpr const char* what = word;                                  \
    static constexpr std::pair<Enum, std::string_view> list[] = {__VA_ARGS__}; \
  };

MOE8_NAMES(ElemDtype, "element dtype", {ElemDtype::E4M3, "float8_e4m3fn"},
           {ElemDtype::E5M2, "float8_e5m2"}, {ElemDtype::E2M3, "float6_e2m3"},
           {ElemDtype::E3M2, "float6_e3m2"}, {ElemDtype::E2M1, "float4_e2m1fn_x2"})
MOE8_NAMES(KernelPreference, "kernel preference", {KernelPreference::AUTO, "auto"},
           {KernelPreference::EMULATED, "emulated"})
MOE8_NAMES(ScaleCalculationMode, "scale calculation mode", {ScaleCalculationMode::FLOOR, "floor"},
           {ScaleCalculationMode::RCEIL, "rceil"}, {ScaleCalculationMode::CEIL, "ceil"},
           {ScaleCalculationMode::EVEN, "even"})
MOE8_NAMES(FP8GroupedMMRecipe, "recipe", {FP8GroupedMMRecipe::FP8_ROWWISE, "fp8_rowwise"})
MOE8_NAMES(MXFP8GroupedMMRecipe, "recipe", {MXFP8GroupedMMRecipe::MXFP8_RCEIL, "mxfp8_rceil"},
           {MXFP8GroupedMMRecipe::MXFP8_RCEIL_WGRAD_WITH_HP, "mxfp8_rceil_wgrad_with_hp"},
           {MXFP8GroupedMMRecipe::MXFP8_EMULATED_RCEIL, "mxfp8_emulated_rceil"},
           {MXFP8GroupedMMRecipe::MXFP8_FLOOR, "mxfp8_floor"},
           {MXFP8GroupedMMRecipe::MXFP8_FLOOR_WGRAD_WITH_HP, "mxfp8_floor_wgrad_with_hp"})
MOE8_NAMES(MXLinearRecipeName, "recipe", {MXLinearRecipeName::MXFP8_EMULATED, "mxfp8_emulated"},
           {MXLinearRecipeName::MXFP8_CUBLAS, "mxfp8_cublas"},
           {MXLinearRecipeName::MXFP8_CUBLAS_RCEIL, "mxfp8_cublas_rceil"},
           {MXLinearRecipeName::MXFP4_EMULATED, "mxfp4_emulated"},
           {MXLinearRecipeName::MXFP4_CUTLASS, "mxfp4_cutlass"})
MOE8_NAMES(Float8LinearRecipeName, "recipe", {Float8LinearRecipeName::TENSORWISE, "tensorwise"},
           {Float8LinearRecipeName::ROWWISE, "rowwise"},
           {Float8LinearRecipeName::ROWWISE_WITH_GW_HP, "rowwise_with_gw_hp"})
MOE8_NAMES(ScalingType, "scaling type", {ScalingType::DYNAMIC, "dynamic"},
           {ScalingType::DISABLED, "disabled"})
MOE8_NAMES(ScalingGranularity, "scaling granularity",
           {ScalingGranularity::TENSORWISE, "tensorwise"},
           {ScalingGranularity::AXISWISE, "axiswise"})
#undef MOE8_NAMES

template <typename Enum>
std::string_view name_of(Enum value) {
  for (const auto& [enumerator, name] : Names<Enum>::list) {
    if (enumerator == value) return name;
  }
  return "invalid";  // a number cast to the enum; validate() refuses it
}

template <typename Enum>
bool is_valid(Enum value) {
  return name_of(value) != "invalid";
}

template <typename Enum>
std::string choices() {
  std::vector<std::string> names;
  for (const auto& entry : Names<Enum>::list) names.emplace_back(entry.second);
  return join(names);
}

// ---- fields: f(name, field...) for every field of every config --------------
template <typename C>
using Bare = std::remove_cvref_t<C>;

template <typename C, typename F>
void for_each_field(C& config, F&& f) {
  using T = Bare<C>;
  if constexpr (std::is_same_v<T, FP8GroupedMMConfig>) {
    f("out_dtype", config.out_dtype);
  } else if constexpr (std::is_same_v<T, MXFP8GroupedMMConfig>) {
    f("kernel_preference", config.kernel_preference);
    f("out_dtype", config.out_dtype);
    f("wgrad_with_hp", config.wgrad_with_hp);
    f("scale_calculation_mode", config.scale_calculation_mode);
  } else if constexpr (std::is_same_v<T, MXLinearConfig>) {
    f("block_size", config.block_size);
    f("elem_dtype", config.elem_dtype);
    f("elem_dtype_weight_override", config.elem_dtype_weight_override);
    f("elem_dtype_grad_output_override", config.elem_dtype_grad_output_override);
    f("kernel_preference", config.kernel_preference);
    f("scale_calculation_mode", config.scale_calculation_mode);
  } else if constexpr (std::is_same_v<T, Float8LinearConfig>) {
    f("cast_config_input", config.cast_config_input);
    f("cast_config_weight", config.cast_config_weight);
    f("cast_config_grad_output", config.cast_config_grad_output);
    f("cast_config_input_for_grad_weight", config.cast_config_input_for_grad_weight);
    f("cast_config_weight_for_grad_input", config.cast_config_weight_for_grad_input);
    f("cast_config_grad_output_for_grad_weight", config.cast_config_grad_output_for_grad_weight);
    f("gemm_config_output", config.gemm_config_output);
    f("gemm_config_grad_input", config.gemm_config_grad_input);
    f("gemm_config_grad_weight", config.gemm_config_grad_weight);
    f("round_scales_to_power_of_2", config.round_scales_to_power_of_2);
    f("emulate", config.emulate);
  } else {
    static_assert(!sizeof(T), "no field list for this config");
  }
}

template <typename C>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<C, FP8GroupedMMConfig>) return "FP8GroupedMMConfig";
  if constexpr (std::is_same_v<C, MXFP8GroupedMMConfig>) return "MXFP8GroupedMMConfig";
  if constexpr (std::is_same_v<C, MXLinearConfig>) return "MXLinearConfig";
  if constexpr (std::is_same_v<C, Float8LinearConfig>) return "Float8LinearConfig";
}

// ---- fields to and from text ------------------------------------------------
std::string_view dtype_name(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bfloat16"
         : dtype == at::kFloat  ? "float32"
                                : c10::toString(dtype);
}

std::string text_of(bool value) {
  return value ? "true" : "false";
}
std::string text_of(int64_t value) {
  return std::to_string(value);
}
std::string text_of(at::ScalarType value) {
  return std::string(dtype_name(value));
}
std::string text_of(const Float8GemmConfig& value) {
  return value.use_fast_accum ? "fast_accum" : "exact_accum";
}
std::string text_of(const CastConfig& value) {
  if (value.scaling_type == ScalingType::DISABLED) return "disabled";
  return c10::str(name_of(value.scaling_granularity), ":", name_of(value.target_dtype));
}
template <typename Enum>
requires std::is_enum_v<Enum> std::string text_of(Enum value) {
  return std::string(name_of(value));
}
template <typename T>
std::string text_of(const std::optional<T>& value) {
  return value ? text_of(*value) : "none";
}

struct FieldText {
  std::string_view field;
  std::string_view text;

  [[noreturn]] void refuse(const std::string& expected) const {
    fail("config", std::string(field), c10::str("expected ", expected, ", got '", text, "'"));
  }

  void into(bool& value) const {
    if (text != "true" && text != "false") refuse("true or false");
    value = text == "true";
  }
  void into(int64_t& value) const {
    size_t used = 0;
    try {
      value = std::stoll(std::string(text), &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != text.size()) refuse("a whole number");
  }
  void into(at::ScalarType& value) const {
    if (text == "bfloat16" || text == "bf16") {
      value = at::kBFloat16;
    } else if (text == "float32" || text == "fp32") {
      value = at::kFloat;
    } else {
      refuse("bfloat16 or float32");
    }
  }
  void into(Float8GemmConfig& value) const {
    if (text != "fast_accum" && text != "exact_accum") refuse("fast_accum or exact_accum");
    value.use_fast_accum = text == "fast_accum";
  }
  void into(CastConfig& value) const {
    if (text == "disabled") {
      value.scaling_type = ScalingType::DISABLED;
      return;
    }
    const size_t colon = text.find(':');
    const std::string_view granularity = text.substr(0, colon);
    if (colon == std::string_view::npos ||
        (granularity != "tensorwise" && granularity != "axiswise")) {
      refuse("'disabled', 'tensorwise:DTYPE' or 'axiswise:DTYPE'");
    }
    value.scaling_type = ScalingType::DYNAMIC;
    value.scaling_granularity = parse<ScalingGranularity>(granularity);
    FieldText{field, text.substr(colon + 1)}.into(value.target_dtype);
  }
  void into(ElemDtype& value) const { value = parse_elem(); }
  template <typename Enum>
  requires std::is_enum_v<Enum>
  void into(Enum& value) const {
    for (const auto& [enumerator, name] : Names<Enum>::list) {
      if (name == text) {
        value = enumerator;
        return;
      }
    }
    refuse("one of " + choices<Enum>());
  }
  template <typename T>
  void into(std::optional<T>& value) const {
    if (text == "none") {
      value.reset();
      return;
    }
    T inner{};
    into(inner);
    value = inner;
  }

 private:
  ElemDtype parse_elem() const {
    static constexpr std::pair<std::string_view, ElemDtype> kShort[] = {
        {"e4m3", ElemDtype::E4M3},    {"e5m2", ElemDtype::E5M2}, {"e2m3", ElemDtype::E2M3},
        {"e3m2", ElemDtype::E3M2},    {"e2m1", ElemDtype::E2M1}, {"fp6_e2m3", ElemDtype::E2M3},
        {"fp6_e3m2", ElemDtype::E3M2}};
    for (const auto& [name, value] : kShort) {
      if (name == text) return value;
    }
    for (const auto& [value, name] : Names<ElemDtype>::list) {
      if (name == text) return value;
    }
    refuse("one of " + choices<ElemDtype>());
  }
};

// ---- checks -----------------------------------------------------------------
// The refusals of validate(): "[MXLinearConfig] block_size: expected 32, got 16". Every call of an
// operation validates, so the texts are made only here, behind the checks.
template <typename C>
[[noreturn]] void refuse(const char* field, const std::string& expected, const std::string& got) {
  fail(type_name<C>(), field, c10::str("expected ", expected, ", got ", got));
}

const std::optional<CastConfig>& as_optional(const std::optional<CastConfig>& cast) {
  return cast;
}
std::optional<CastConfig> as_optional(const CastConfig& cast) {
  return cast;
}

void check_cast(const char* field, const CastConfig& cast) {
  if (!is_valid(cast.scaling_type) || !is_valid(cast.scaling_granularity)) {
    refuse<Float8LinearConfig>(field, "valid enumerators", "an invalid enumerator");
  }
  if (cast.target_dtype != ElemDtype::E4M3 && cast.target_dtype != ElemDtype::E5M2) {
    refuse<Float8LinearConfig>(field, "target_dtype float8_e4m3fn or float8_e5m2",
                               std::string(name_of(cast.target_dtype)));
  }
}

// Each field for itself; what fields demand of each other is in validate().
template <typename C>
void check_fields(const C& config) {
  for_each_field(config, [](const char* field, const auto& value) {
    using T = Bare<decltype(value)>;
    if constexpr (std::is_same_v<T, at::ScalarType>) {
      if (value != at::kBFloat16 && value != at::kFloat) {
        refuse<C>(field, "bfloat16 or float32", std::string(dtype_name(value)));
      }
    } else if constexpr (std::is_same_v<T, std::optional<ElemDtype>>) {
      if (value && !is_valid(*value)) {
        refuse<C>(field, "one of " + choices<ElemDtype>(), "an invalid enumerator");
      }
    } else if constexpr (std::is_same_v<T, int64_t>) {
      if (value != 32) {
        refuse<C>(field, "32 (the block of OCP MX v1.0)", std::to_string(value));
      }
    } else if constexpr (std::is_same_v<T, CastConfig> ||
                         std::is_same_v<T, std::optional<CastConfig>>) {
      if (const std::optional<CastConfig> cast = as_optional(value)) check_cast(field, *cast);
    } else if constexpr (std::is_enum_v<T>) {
      if (!is_valid(value)) refuse<C>(field, "one of " + choices<T>(), "an invalid enumerator");
    }
  });
}

template <typename T>
void hash_into(size_t& seed, const T& value) {
  seed ^=
      std::hash<std::string>{}(text_of(value)) + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2);
}

template <typename C>
size_t hash_of(const C& config) {
  size_t seed = 0;
  for_each_field(config, [&](const char*, const auto& value) { hash_into(seed, value); });
  return seed;
}

}  // namespace

// ---- strings ----------------------------------------------------------------
std::string_view to_string(ElemDtype value) {
  return name_of(value);
}
std::string_view to_string(KernelPreference value) {
  return name_of(value);
}
std::string_view to_string(ScaleCalculationMode value) {
  return name_of(value);
}
std::string_view to_string(FP8GroupedMMRecipe value) {
  return name_of(value);
}
std::string_view to_string(MXFP8GroupedMMRecipe value) {
  return name_of(value);
}
std::string_view to_string(MXLinearRecipeName value) {
  return name_of(value);
}
std::string_view to_string(Float8LinearRecipeName value) {
  return name_of(value);
}
std::string_view to_string(ScalingType value) {
  return name_of(value);
}
std::string_view to_string(ScalingGranularity value) {
  return name_of(value);
}

template <typename Enum>
Enum parse(std::string_view text) {
  Enum value{};
  FieldText{Names<Enum>::what, text}.into(value);
  return value;
}
template ElemDtype parse(std::string_view);
template KernelPreference parse(std::string_view);
template ScaleCalculationMode parse(std::string_view);
template FP8GroupedMMRecipe parse(std::string_view);
template MXFP8GroupedMMRecipe parse(std::string_view);
template MXLinearRecipeName parse(std::string_view);
template Float8LinearRecipeName parse(std::string_view);
template ScalingType parse(std::string_view);
template ScalingGranularity parse(std::string_view);

std::string to_string(const Config& config) {
  return std::visit(
      [](const auto& c) {
        std::string text = c10::str(type_name<Bare<decltype(c)>>(), "(");
        const char* separator = "";
        for_each_field(c, [&](const char* field, const auto& value) {
          text += c10::str(separator, field, "=", text_of(value));
          separator = ", ";
        });
        return text + ")";
      },
      config);
}

void set_field(Config& config, std::string_view field, std::string_view value) {
  std::visit(
      [&](auto& c) {
        bool found = false;
        std::vector<std::string> fields;
        for_each_field(c, [&](const char* name, auto& member) {
          fields.emplace_back(name);
          if (field != name) return;
          FieldText{field, value}.into(member);
          found = true;
        });
        MOE8_CHECK(found, type_name<Bare<decltype(c)>>(), std::string(field),
                   "there is no such field; it has ", join(fields));
        check_fields(c);  // not validate(): two casts that must agree can only be set in turn
      },
      config);
}

// ---- recipes ----------------------------------------------------------------
FP8GroupedMMConfig FP8GroupedMMConfig::from_recipe(FP8GroupedMMRecipe recipe) {
  switch (recipe) {
    case FP8GroupedMMRecipe::FP8_ROWWISE:
      return {};
  }
  fail("FP8GroupedMMConfig", "recipe", "expected one of " + choices<FP8GroupedMMRecipe>());
}

MXFP8GroupedMMConfig MXFP8GroupedMMConfig::from_recipe(MXFP8GroupedMMRecipe recipe) {
  using enum MXFP8GroupedMMRecipe;
  switch (recipe) {
    case MXFP8_RCEIL:
      return {};
    case MXFP8_RCEIL_WGRAD_WITH_HP:
      return {.wgrad_with_hp = true};
    case MXFP8_EMULATED_RCEIL:
      return {.kernel_preference = KernelPreference::EMULATED};
    case MXFP8_FLOOR:
      return {.scale_calculation_mode = ScaleCalculationMode::FLOOR};
    case MXFP8_FLOOR_WGRAD_WITH_HP:
      return {.wgrad_with_hp = true, .scale_calculation_mode = ScaleCalculationMode::FLOOR};
  }
  fail("MXFP8GroupedMMConfig", "recipe", "expected one of " + choices<MXFP8GroupedMMRecipe>());
}

MXLinearConfig MXLinearConfig::from_recipe_name(MXLinearRecipeName recipe) {
  using enum MXLinearRecipeName;
  switch (recipe) {
    case MXFP8_EMULATED:
      return {};
    case MXFP8_CUBLAS:
      return {.kernel_preference = KernelPreference::AUTO};
    case MXFP8_CUBLAS_RCEIL:
      return {.kernel_preference = KernelPreference::AUTO,
              .scale_calculation_mode = ScaleCalculationMode::RCEIL};
    case MXFP4_EMULATED:
      return {.elem_dtype = ElemDtype::E2M1};
    case MXFP4_CUTLASS:
      return {.elem_dtype = ElemDtype::E2M1, .kernel_preference = KernelPreference::AUTO};
  }
  fail("MXLinearConfig", "recipe", "expected one of " + choices<MXLinearRecipeName>());
}

MXLinearConfig MXLinearConfig::from_recipe_name(std::string_view recipe) {
  return from_recipe_name(parse<MXLinearRecipeName>(recipe));
}

Float8LinearConfig Float8LinearConfig::from_recipe_name(Float8LinearRecipeName recipe) {
  using enum Float8LinearRecipeName;
  constexpr CastConfig kRow{.scaling_granularity = ScalingGranularity::AXISWISE};
  constexpr CastConfig kTensor{};
  constexpr CastConfig kOff{.scaling_type = ScalingType::DISABLED};
  switch (recipe) {
    case TENSORWISE:
      return {};
    case ROWWISE:
      return {.cast_config_input = kRow,
              .cast_config_weight = kRow,
              .cast_config_grad_output = kRow,
              .round_scales_to_power_of_2 = true};
    case ROWWISE_WITH_GW_HP:
      return {.cast_config_input = kRow,
              .cast_config_weight = kRow,
              .cast_config_grad_output = kRow,
              .cast_config_input_for_grad_weight = kOff,
              .cast_config_weight_for_grad_input = kTensor,
              .cast_config_grad_output_for_grad_weight = kOff,
              .round_scales_to_power_of_2 = true};
  }
  fail("Float8LinearConfig", "recipe", "expected one of " + choices<Float8LinearRecipeName>());
}

Float8LinearConfig Float8LinearConfig::from_recipe_name(std::string_view recipe) {
  return from_recipe_name(parse<Float8LinearRecipeName>(recipe));
}

const std::vector<RecipeInfo>& all_recipes() {
  static const std::vector<RecipeInfo> recipes = [] {
    std::vector<RecipeInfo> list;
    const auto experts = [&](auto name, const char* description) {
      using Recipe = decltype(name);
      using C = std::conditional_t<std::is_same_v<Recipe, FP8GroupedMMRecipe>, FP8GroupedMMConfig,
                                   MXFP8GroupedMMConfig>;
      list.push_back({std::string(name_of(name)), "experts", description, C::from_recipe(name)});
    };
    const auto linear = [&](auto name, const char* description) {
      using Recipe = decltype(name);
      using C = std::conditional_t<std::is_same_v<Recipe, MXLinearRecipeName>, MXLinearConfig,
                                   Float8LinearConfig>;
      list.push_back(
          {std::string(name_of(name)), "linear", description, C::from_recipe_name(name)});
    };
    experts(FP8GroupedMMRecipe::FP8_ROWWISE, "e4m3, a power-of-two scale per row of every operand");
    experts(MXFP8GroupedMMRecipe::MXFP8_RCEIL,
            "e4m3, a scale per 32 elements, rounded up: no saturation");
    experts(MXFP8GroupedMMRecipe::MXFP8_RCEIL_WGRAD_WITH_HP, "as mxfp8_rceil, grad_W unquantized");
    experts(MXFP8GroupedMMRecipe::MXFP8_EMULATED_RCEIL,
            "as mxfp8_rceil, reference arithmetic everywhere");
    experts(MXFP8GroupedMMRecipe::MXFP8_FLOOR,
            "e4m3, a scale per 32 elements, rounded down: may saturate");
    experts(MXFP8GroupedMMRecipe::MXFP8_FLOOR_WGRAD_WITH_HP, "as mxfp8_floor, grad_W unquantized");
    linear(MXLinearRecipeName::MXFP8_EMULATED, "MX e4m3, floor scales, reference arithmetic");
    linear(MXLinearRecipeName::MXFP8_CUBLAS,
           "MX e4m3, floor scales, the best kernel of the device");
    linear(MXLinearRecipeName::MXFP8_CUBLAS_RCEIL, "MX e4m3, scales rounded up, the best kernel");
    linear(MXLinearRecipeName::MXFP4_EMULATED, "MX e2m1, floor scales, reference arithmetic");
    linear(MXLinearRecipeName::MXFP4_CUTLASS,
           "MX e2m1, floor scales, the best kernel of the device");
    linear(Float8LinearRecipeName::TENSORWISE,
           "e4m3 (gradients e5m2), one float32 scale per tensor");
    linear(Float8LinearRecipeName::ROWWISE, "e4m3, a power-of-two scale per row of every operand");
    linear(Float8LinearRecipeName::ROWWISE_WITH_GW_HP, "as rowwise, grad_W unquantized");
    return list;
  }();
  return recipes;
}

Config recipe(std::string_view name) {
  std::vector<std::string> names;
  for (const RecipeInfo& info : all_recipes()) {
    if (info.name == name) return info.config;
    names.push_back(info.name);
  }
  fail("recipe", "name", c10::str("expected one of ", join(names), ", got '", name, "'"));
}

bool is_grouped(const Config& config) {
  return std::holds_alternative<FP8GroupedMMConfig>(config) ||
         std::holds_alternative<MXFP8GroupedMMConfig>(config);
}

// ---- validate ---------------------------------------------------------------
void FP8GroupedMMConfig::validate() const {
  check_fields(*this);
}

void MXFP8GroupedMMConfig::validate() const {
  check_fields(*this);
}

void MXLinearConfig::validate() const {
  check_fields(*this);
}

void Float8LinearConfig::validate() const {
  check_fields(*this);
  // A GEMM multiplies two quantized operands or two unquantized ones.
  const auto disabled = [](const CastConfig& cast) {
    return cast.scaling_type == ScalingType::DISABLED;
  };
  const auto pair = [&](const char* gemm, const CastConfig& left, const CastConfig& right) {
    if (disabled(left) == disabled(right)) return;
    refuse<Float8LinearConfig>(gemm, "both operands quantized or both disabled",
                               c10::str(text_of(left), " x ", text_of(right)));
  };
  pair("gemm_config_output", cast_config_input, cast_config_weight);
  pair("gemm_config_grad_input", cast_config_grad_output,
       cast_config_weight_for_grad_input.value_or(cast_config_weight));
  pair("gemm_config_grad_weight",
       cast_config_grad_output_for_grad_weight.value_or(cast_config_grad_output),
       cast_config_input_for_grad_weight.value_or(cast_config_input));
}

void validate(const Config& config) {
  std::visit([](const auto& c) { c.validate(); }, config);
}

}  // namespace moe8

size_t std::hash<moe8::FP8GroupedMMConfig>::operator()(
    const moe8::FP8GroupedMMConfig& config) const {
  return moe8::hash_of(config);
}
size_t std::hash<moe8::MXFP8GroupedMMConfig>::operator()(
    const moe8::MXFP8GroupedMMConfig& config) const {
  return moe8::hash_of(config);
}
size_t std::hash<moe8::MXLinearConfig>::operator()(const moe8::MXLinearConfig& config) const {
  return moe8::hash_of(config);
}
size_t std::hash<moe8::Float8LinearConfig>::operator()(
    const moe8::Float8LinearConfig& config) const {
  return moe8::hash_of(config);
}
