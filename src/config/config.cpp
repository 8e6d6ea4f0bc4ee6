// SPDX-License-Identifier: BSD-3-Clause
// What the fields of a config demand of each other, and what is true of any config. The fields
// are listed in fields.h, recipes in recipes.h; text.cpp prints and reads both.
#include "moe8/config.h"

#include "base/check.h"
#include "base/plain_text.h"
#include "config/fields.h"
#include "config/filled.h"

namespace moe8 {
namespace {

[[noreturn]] void refuse(const char* field, const std::string& expected, const std::string& got) {
  fail(Fields<Float8LinearConfig>::type, field, concat("expected ", expected, ", got ", got));
}

// ---- Float8LinearConfig -----------------------------------------------------
bool disabled(const CastConfig& cast) {
  return cast.scaling_type == ScalingType::DISABLED;
}

/// A GEMM multiplies two quantized operands or two unquantized ones.
void check_gemm(const char* gemm, const CastConfig& left, const CastConfig& right) {
  if (disabled(left) == disabled(right)) return;
  refuse(gemm, "both operands quantized or both disabled",
         concat(to_string(left), " x ", to_string(right)));
}

/// A tensor is cast to one dtype, whichever GEMMs read it.
void check_tensor(const char* base_field, const CastConfig& base, const char* field,
                  const CastConfig& cast) {
  if (disabled(base) || disabled(cast) || base.target_dtype == cast.target_dtype) return;
  refuse(field, concat(to_string(*base.target_dtype), " as ", base_field, " has it"),
         std::string(to_string(*cast.target_dtype)));
}

void fill(CastConfig& base, std::optional<CastConfig>& other, ElemDtype dtype) {
  if (!other) other = base;
  if (!base.target_dtype) base.target_dtype = dtype;
  if (!other->target_dtype) other->target_dtype = dtype;
}

}  // namespace

Float8LinearConfig filled(Float8LinearConfig c) {
  fill(c.cast_config_input, c.cast_config_input_for_grad_weight, ElemDtype::E4M3);
  fill(c.cast_config_weight, c.cast_config_weight_for_grad_input, ElemDtype::E4M3);
  fill(c.cast_config_grad_output, c.cast_config_grad_output_for_grad_weight, ElemDtype::E5M2);
  return c;
}

void Float8LinearConfig::validate() const {
  check_fields(*this);
  const Float8LinearConfig c = filled(*this);
  const CastConfig &input = c.cast_config_input, &weight = c.cast_config_weight,
                   &grad_output = c.cast_config_grad_output;
  const CastConfig& input_for_grad_weight = *c.cast_config_input_for_grad_weight;
  const CastConfig& weight_for_grad_input = *c.cast_config_weight_for_grad_input;
  const CastConfig& grad_output_for_grad_weight = *c.cast_config_grad_output_for_grad_weight;
  check_gemm("gemm_config_output", input, weight);
  check_gemm("gemm_config_grad_input", grad_output, weight_for_grad_input);
  check_gemm("gemm_config_grad_weight", grad_output_for_grad_weight, input_for_grad_weight);
  check_tensor("cast_config_input", input, "cast_config_input_for_grad_weight",
               input_for_grad_weight);
  check_tensor("cast_config_weight", weight, "cast_config_weight_for_grad_input",
               weight_for_grad_input);
  check_tensor("cast_config_grad_output", grad_output, "cast_config_grad_output_for_grad_weight",
               grad_output_for_grad_weight);
}

bool Float8LinearConfig::operator==(const Float8LinearConfig& other) const {
  return to_string(Config(*this)) == to_string(Config(other));  // of filled configs
}

// ---- the others -------------------------------------------------------------
void FP8GroupedMMConfig::validate() const {
  check_fields(*this);
}

void MXFP8GroupedMMConfig::validate() const {
  check_fields(*this);
}

void MXLinearConfig::validate() const {
  check_fields(*this);
}

// ---- any config -------------------------------------------------------------
void validate(const Config& config) {
  std::visit([](const auto& c) { c.validate(); }, config);
}

bool is_grouped(const Config& config) {
  return std::visit([](const auto& c) { return c.kGrouped; }, config);
}

}  // namespace moe8
