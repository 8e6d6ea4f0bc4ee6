// SPDX-License-Identifier: BSD-3-Clause
// The names of enumerators, as configs write them. Those of recipes are in recipes.h.
#pragma once

#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "base/nearest.h"
#include "formats/elem.h"
#include "moe8/config.h"

namespace moe8 {

template <typename Enum>
struct NamedValue {
  Enum value;
  std::string_view name;
};

/// `word`: what messages call the enum. `list`: a row per enumerator, with `value` and `name`.
template <typename Enum>
struct EnumNames;

template <>
struct EnumNames<ElemDtype> {
  using enum ElemDtype;
  static constexpr const char* word = "element dtype";
  static constexpr NamedValue<ElemDtype> list[] = {{E4M3, "float8_e4m3fn"},
                                                   {E5M2, "float8_e5m2"},
                                                   {E2M3, "float6_e2m3"},
                                                   {E3M2, "float6_e3m2"},
                                                   {E2M1, "float4_e2m1fn_x2"}};
  static constexpr NamedValue<ElemDtype> also_read[] = {
      {E4M3, "e4m3"}, {E5M2, "e5m2"},     {E2M3, "e2m3"},     {E3M2, "e3m2"},
      {E2M1, "e2m1"}, {E2M3, "fp6_e2m3"}, {E3M2, "fp6_e3m2"},
  };
};

static_assert(std::size(EnumNames<ElemDtype>::list) == kElemLayouts.size(),
              "an element format has a name here and a row in formats/elem.h");

template <>
struct EnumNames<KernelPreference> {
  using enum KernelPreference;
  static constexpr const char* word = "kernel preference";
  static constexpr NamedValue<KernelPreference> list[] = {{AUTO, "auto"}, {EMULATED, "emulated"}};
};

template <>
struct EnumNames<ScaleCalculationMode> {
  using enum ScaleCalculationMode;
  static constexpr const char* word = "scale calculation mode";
  static constexpr NamedValue<ScaleCalculationMode> list[] = {
      {FLOOR, "floor"}, {RCEIL, "rceil"}, {CEIL, "ceil"}, {EVEN, "even"}};
};

template <>
struct EnumNames<ScalingType> {
  using enum ScalingType;
  static constexpr const char* word = "scaling type";
  static constexpr NamedValue<ScalingType> list[] = {{DYNAMIC, "dynamic"}, {DISABLED, "disabled"}};
};

template <>
struct EnumNames<ScalingGranularity> {
  using enum ScalingGranularity;
  static constexpr const char* word = "scaling granularity";
  static constexpr NamedValue<ScalingGranularity> list[] = {{TENSORWISE, "tensorwise"},
                                                            {AXISWISE, "axiswise"}};
};

/// "invalid" for a number that is no enumerator; validate() refuses it.
template <typename Enum>
std::string_view name_of(Enum value) {
  for (const auto& row : EnumNames<Enum>::list) {
    if (row.value == value) return row.name;
  }
  return "invalid";
}

/// "floor, rceil, ceil, even"
template <typename Enum>
std::string choices() {
  std::vector<std::string> names;
  for (const auto& row : EnumNames<Enum>::list) names.emplace_back(row.name);
  return join(names);
}

}  // namespace moe8
