// SPDX-License-Identifier: BSD-3-Clause
// Configs, their fields and their enumerators to and from text.

#include <charconv>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "base/plain_text.h"
#include "config/fields.h"
#include "config/filled.h"
#include "config/recipes.h"
#include "moe8/config.h"

namespace moe8 {
namespace {

// ---- values to text ---------------------------------------------------------
std::string text_of(bool value) {
  return value ? "true" : "false";
}
std::string text_of(int64_t value) {
  return std::to_string(value);
}
std::string text_of(at::ScalarType value) {
  return value == at::kBFloat16 ? "bfloat16"
         : value == at::kFloat  ? "float32"
                                : c10::toString(value);
}
std::string text_of(const Float8GemmConfig& value) {
  return value.use_fast_accum ? "fast_accum" : "exact_accum";
}
std::string text_of(const CastConfig& value) {
  return to_string(value);
}
template <typename Enum>
requires std::is_enum_v<Enum> std::string text_of(Enum value) {
  return std::string(name_of(value));
}
template <typename T>
std::string text_of(const std::optional<T>& value) {
  return value ? text_of(*value) : "none";
}

// ---- text to values ---------------------------------------------------------
struct FieldText {
  std::string_view field;
  std::string_view text;

  [[noreturn]] void refuse(const std::string& expected) const {
    fail("config", std::string(field), concat("expected ", expected, ", got '", text, "'"));
  }

  void into(bool& value) const {
    if (text != "true" && text != "false") refuse("true or false");
    value = text == "true";
  }
  void into(int64_t& value) const {
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stopped != end) refuse("a whole number");
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
    if (granularity != "tensorwise" && granularity != "axiswise") {
      refuse("'disabled', 'tensorwise', 'axiswise', 'tensorwise:DTYPE' or 'axiswise:DTYPE'");
    }
    value = {.scaling_granularity = parse<ScalingGranularity>(granularity)};
    if (colon != std::string_view::npos) {
      FieldText{field, text.substr(colon + 1)}.into(value.target_dtype.emplace());
    }
  }
  template <typename Enum>
  requires std::is_enum_v<Enum>
  void into(Enum& value) const {
    if (find_in(EnumNames<Enum>::list, value)) return;
    if constexpr (requires { EnumNames<Enum>::also_read; }) {
      if (find_in(EnumNames<Enum>::also_read, value)) return;
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
  template <typename Rows, typename Enum>
  bool find_in(const Rows& rows, Enum& value) const {
    for (const auto& row : rows) {
      if (row.name != text) continue;
      value = row.value;
      return true;
    }
    return false;
  }
};

template <typename C>
C filled(const C& config) {
  return config;  // of the other configs nothing is left open
}

template <typename C>
size_t hash_of(const C& config) {
  return std::hash<std::string>{}(to_string(Config(config)));
}

}  // namespace

// ---- configs ----------------------------------------------------------------
std::string to_string(const CastConfig& cast) {
  if (cast.scaling_type == ScalingType::DISABLED) return "disabled";
  const std::string granularity(name_of(cast.scaling_granularity));
  return cast.target_dtype ? concat(granularity, ":", name_of(*cast.target_dtype)) : granularity;
}

std::string to_string(const Config& config) {
  return std::visit(
      [](const auto& c) {
        std::string text = concat(FieldsOf<decltype(c)>::type, "(");
        const char* separator = "";
        const auto add = [&](const char* field, const auto& value, const auto&) {
          text += concat(separator, field, "=", text_of(value));
          separator = ", ";
        };
        const auto whole = filled(c);
        FieldsOf<decltype(c)>::visit(whole, add);
        return text + ")";
      },
      config);
}

void set_field(Config& config, std::string_view field, std::string_view value) {
  std::visit(
      [&](auto& c) {
        bool found = false;
        std::vector<std::string> fields;
        const auto set = [&](const char* name, auto& member, const auto&) {
          fields.emplace_back(name);
          if (field != name) return;
          FieldText{field, value}.into(member);
          found = true;
        };
        FieldsOf<decltype(c)>::visit(c, set);
        MOE8_CHECK(found, FieldsOf<decltype(c)>::type, std::string(field),
                   "there is no such field; it has ", join(fields));
        check_fields(c);  // not validate(): two casts that must agree can only be set in turn
      },
      config);
}

template <typename C>
void check_fields(const C& config) {
  Fields<C>::visit(config, [](const char* field, const auto& value, const auto& rule) {
    MOE8_CHECK(rule.allows(value), Fields<C>::type, field, "expected ", rule.expected(), ", got ",
               text_of(value));
  });
}
template void check_fields(const FP8GroupedMMConfig&);
template void check_fields(const MXFP8GroupedMMConfig&);
template void check_fields(const MXLinearConfig&);
template void check_fields(const Float8LinearConfig&);

// ---- enumerators ------------------------------------------------------------
template <typename Enum>
Enum parse(std::string_view text) {
  Enum value{};
  FieldText{EnumNames<Enum>::word, text}.into(value);
  return value;
}

#define MOE8_TEXT_OF_ENUM(Enum)            \
  std::string_view to_string(Enum value) { \
    return name_of(value);                 \
  }                                        \
  template Enum parse(std::string_view);

MOE8_TEXT_OF_ENUM(ElemDtype)
MOE8_TEXT_OF_ENUM(KernelPreference)
MOE8_TEXT_OF_ENUM(ScaleCalculationMode)
MOE8_TEXT_OF_ENUM(FP8GroupedMMRecipe)
MOE8_TEXT_OF_ENUM(MXFP8GroupedMMRecipe)
MOE8_TEXT_OF_ENUM(MXLinearRecipeName)
MOE8_TEXT_OF_ENUM(Float8LinearRecipeName)
MOE8_TEXT_OF_ENUM(ScalingType)
MOE8_TEXT_OF_ENUM(ScalingGranularity)
#undef MOE8_TEXT_OF_ENUM

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
