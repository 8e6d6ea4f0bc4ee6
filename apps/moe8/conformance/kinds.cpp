// SPDX-License-Identifier: BSD-3-Clause
#include "conformance/kinds.h"

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "moe8/blocked_scales.h"
#include "moe8/config.h"
#include "moe8/float8.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

// ---- quantizers -------------------------------------------------------------
Outcome mx_quantize(const CaseFile& file) {
  const int64_t block = file.number("block_size", kMxBlock);
  MOE8_CHECK(block == kMxBlock, kCaseOp, "block_size", "expected ", kMxBlock, ", got ", block);
  const MXTensor got = quantize_mx(file.tensor("input"), parse<ElemDtype>(file.text("elem_dtype")),
                                   parse<ScaleCalculationMode>(file.text("scale_calculation_mode")),
                                   file.number("axis", -1));
  ExactCheck check;
  check.add("data", got.data, file.tensor("data"));
  check.add("scale", got.scale, file.tensor("scale"));
  if (const std::optional<at::Tensor> values = file.tensor_if_present("dequantized")) {
    check.add("dequantized", dequantize(got, values->scalar_type()), *values);
  }
  return check.outcome();
}

Float8Granularity granularity_of(const CaseFile& file) {
  const auto kind = parse<ScalingGranularity>(file.text("granularity"));
  if (kind == ScalingGranularity::TENSORWISE) return Float8Granularity::tensorwise();
  return Float8Granularity::axiswise(file.number("axis"));
}

ElemDtype float8_dtype_of(const CaseFile& file) {
  return parse<ElemDtype>(file.text("elem_dtype", "float8_e4m3fn"));
}

Outcome fp8_quantize(const CaseFile& file) {
  const Float8Tensor got =
      quantize_float8(file.tensor("input"), granularity_of(file), float8_dtype_of(file),
                      file.flag("round_scales_to_power_of_2"));
  ExactCheck check;
  check.add("data", got.data, file.tensor("data"));
  check.add("scale", got.scale, file.tensor("scale"));
  return check.outcome();
}

// The groups that have rows; `offs` was checked by the quantizer.
std::vector<int64_t> groups_with_rows(const at::Tensor& offs) {
  std::vector<int64_t> groups;
  int64_t begin = 0;
  for (int64_t g = 0; g < offs.numel(); ++g) {
    const int64_t end = offs[g].item<int64_t>();
    if (end > begin) groups.push_back(g);
    begin = end;
  }
  return groups;
}

Outcome fp8_quantize_groups(const CaseFile& file) {
  const at::Tensor offs = file.tensor("offs");
  const Float8Tensor got =
      quantize_float8(file.tensor("input"), Float8Granularity::axiswise(file.number("axis", 0)),
                      float8_dtype_of(file), file.flag("round_scales_to_power_of_2"), offs);
  ExactCheck check;
  check.add("data", got.data, file.tensor("data"));
  const at::Tensor scale = file.tensor("scale");
  MOE8_CHECK(scale.sizes() == got.scale.sizes(), kCaseOp, "scale", "expected shape ", scale.sizes(),
             " (the file's), got ", got.scale.sizes());
  for (const int64_t g : groups_with_rows(offs)) {  // an empty group's scale means nothing
    check.add(concat("scale of group ", g), got.scale.select(0, g), scale.select(0, g));
  }
  return check.outcome();
}

// ---- products ---------------------------------------------------------------
std::string field_text(const std::string& key, const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean() || value.is_number_integer()) return value.dump();
  if (value.is_null()) return "none";
  fail(kCaseOp, key,
       concat("expected a string, boolean, integer or null, got ", value.type_name()));
}

// Every parameter that says nothing else is a field of the config.
Config with_overrides(Config config, const CaseFile& file) {
  for (const auto& [key, value] : file.parameters().items()) {
    if (key == "kind" || key == "config" || key == "recipe") continue;
    if (key == "note" || key == "group_sizes") continue;  // for people; offs has the sizes
    set_field(config, key, field_text(key, value));
  }
  return config;
}

Config grouped_config(const CaseFile& file) {
  const std::string name = file.text("recipe");
  const Config base = name == "mxfp8" ? Config(MXFP8GroupedMMConfig{}) : recipe(name);
  return with_overrides(base, file);
}

at::Tensor leaf(const at::Tensor& x) {
  return x.detach().requires_grad_(true);
}

Outcome grouped_mm(const CaseFile& file) {
  const Config config = grouped_config(file);
  const at::Tensor A = leaf(file.tensor("A"));
  const at::Tensor B = leaf(file.tensor("B"));
  const at::Tensor out =
      quantize_then_scaled_grouped_mm(A, B.transpose(-2, -1), file.tensor("offs"), config);
  out.backward(file.tensor("grad_out"));
  AccuracyCheck check;
  check.add("out", out, file.tensor("out"));
  check.add("grad_A", A.grad(), file.tensor("grad_A"));
  check.add("grad_B", B.grad(), file.tensor("grad_B"));
  return check.outcome();
}

Config linear_config(const CaseFile& file) {
  const std::string type = file.text("config");
  Config config;
  if (type == "MXLinearConfig") {
    config = file.has("recipe") ? MXLinearConfig::from_recipe_name(file.text("recipe"))
                                : MXLinearConfig{};
  } else if (type == "Float8LinearConfig") {
    config = file.has("recipe") ? Float8LinearConfig::from_recipe_name(file.text("recipe"))
                                : Float8LinearConfig{};
  } else {
    fail(kCaseOp, "config", "expected MXLinearConfig or Float8LinearConfig, got '" + type + "'");
  }
  return with_overrides(config, file);
}

Outcome linear(const CaseFile& file) {
  const Config config = linear_config(file);
  const at::Tensor x = leaf(file.tensor("x"));
  const at::Tensor weight = leaf(file.tensor("weight"));
  std::optional<at::Tensor> bias = file.tensor_if_present("bias");
  if (bias) bias = leaf(*bias);
  const at::Tensor out = quantize_then_linear(x, weight, bias, config);
  out.backward(file.tensor("grad_out"));
  AccuracyCheck check;
  check.add("out", out, file.tensor("out"));
  check.add("grad_x", x.grad(), file.tensor("grad_x"));
  check.add("grad_weight", weight.grad(), file.tensor("grad_weight"));
  if (bias) check.add("grad_bias", bias->grad(), file.tensor("grad_bias"));
  return check.outcome();
}

// ---- blocked scales ---------------------------------------------------------
Outcome exactly(const CaseFile& file, const at::Tensor& blocked) {
  ExactCheck check;
  check.add("blocked", blocked, file.tensor("blocked"));
  return check.outcome();
}

Outcome exactly(const CaseFile& file, const BlockedGroups& got, const char* start) {
  ExactCheck check;
  check.add("blocked", got.blocked, file.tensor("blocked"));
  check.add(start, got.start, file.tensor(start).to(at::kLong));
  return check.outcome();
}

Outcome blocked(const CaseFile& file) {
  return exactly(file, to_blocked(file.tensor("scale")));
}

Outcome blocked_3d(const CaseFile& file) {
  return exactly(file, to_blocked_3d(file.tensor("scale")));
}

Outcome blocked_m_groups(const CaseFile& file) {
  return exactly(file, to_blocked_m_groups(file.tensor("scale"), file.tensor("offs")), "start_row");
}

Outcome blocked_k_groups(const CaseFile& file) {
  return exactly(file, to_blocked_k_groups(file.tensor("scale"), file.tensor("offs")), "start_col");
}

// ---- the table --------------------------------------------------------------
using Check = Outcome (*)(const CaseFile&);

constexpr std::array<std::pair<std::string_view, Check>, 9> kKinds = {{
    {"mx_quantize", mx_quantize},
    {"fp8_quantize", fp8_quantize},
    {"fp8_quantize_groups", fp8_quantize_groups},
    {"grouped_mm", grouped_mm},
    {"linear", linear},
    {"to_blocked", blocked},
    {"to_blocked_3d", blocked_3d},
    {"to_blocked_m_groups", blocked_m_groups},
    {"to_blocked_k_groups", blocked_k_groups},
}};

}  // namespace

Outcome check_case(const CaseFile& file) {
  const std::string kind = file.text("kind");
  std::vector<std::string> known;
  for (const auto& [name, check] : kKinds) {
    if (name == kind) return check(file);
    known.emplace_back(name);
  }
  fail(kCaseOp, "kind", concat("expected one of ", join(known), ", got '", kind, "'"));
}

}  // namespace moe8
