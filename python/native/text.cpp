// SPDX-License-Identifier: BSD-3-Clause
// Questions and answers in JSON: configs, conversion and its reports, as C++ decides them.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "autograd/training_formats.h"
#include "base/check.h"
#include "base/nearest.h"
#include "base/overloaded.h"
#include "base/plain_text.h"
#include "convert/resolve.h"
#include "cpu/isa.h"
#include "format_code.h"
#include "fused_experts.h"
#include "guarded.h"
#include "interface.h"
#include "log.h"
#include "moe8/config.h"

namespace moe8::native {
namespace {

using Json = nlohmann::json;

// ---- configs ----------------------------------------------------------------
Config default_of(std::string_view type) {
  if (type == "FP8GroupedMMConfig") return FP8GroupedMMConfig{};
  if (type == "MXFP8GroupedMMConfig") return MXFP8GroupedMMConfig{};
  if (type == "MXLinearConfig") return MXLinearConfig{};
  if (type == "Float8LinearConfig") return Float8LinearConfig{};
  fail("config", "type",
       concat("expected FP8GroupedMMConfig, MXFP8GroupedMMConfig, MXLinearConfig or ",
              "Float8LinearConfig, got '", type, "'"));
}

// The inverse of to_string(config); a recipe's name; "TYPE(field=value, ...)" of some fields.
Config config_of(std::string_view text) {
  const size_t open = text.find('(');
  if (open == std::string_view::npos) return recipe(text);
  MOE8_CHECK(text.ends_with(')'), "config", "text", "expected TYPE(field=value, ...), got '", text,
             "'");
  Config config = default_of(text.substr(0, open));
  std::string_view rest = text.substr(open + 1, text.size() - open - 2);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(", "), rest.size());
    const std::string_view field = rest.substr(0, end);
    const size_t equals = field.find('=');
    MOE8_CHECK(equals != std::string_view::npos, "config", "text", "expected field=value, got '",
               field, "'");
    set_field(config, field.substr(0, equals), field.substr(equals + 1));
    rest.remove_prefix(std::min(end + 2, rest.size()));
  }
  validate(config);
  return config;
}

std::optional<Config> optional_config(const Json& text) {
  return text.is_null() ? std::nullopt : std::optional(config_of(text.get<std::string>()));
}

Json product_of(const GemmFormats& formats) {
  return {{"left", encode_format(formats.left)},
          {"right", encode_format(formats.right)},
          {"fast_accum", formats.use_fast_accum}};
}

std::string out_dtype_text(const Config& config) {
  const auto text = [](const auto& c) -> std::string {
    return c.out_dtype == at::kFloat ? "float32" : "bfloat16";
  };
  return std::visit(Overloaded{[&](const FP8GroupedMMConfig& c) { return text(c); },
                               [&](const MXFP8GroupedMMConfig& c) { return text(c); },
                               [](const auto&) { return std::string(); }},
                    config);
}

constexpr std::string_view kNone = "none";  // experts that are multiplied as they are

// {"config": TEXT} -> what it means.
Json answer_config(const Json& request) {
  const auto given = request.at("config").get<std::string>();
  const std::optional<Config> config =
      given == kNone ? std::nullopt : std::optional(config_of(given));
  const TrainingFormats formats = config ? training_formats(*config) : TrainingFormats{};
  return {{"text", config ? to_string(*config) : kNone},
          {"grouped", !config || is_grouped(*config)},
          {"out_dtype", config ? out_dtype_text(*config) : ""},  // empty: that of the input
          {"out", product_of(formats.out)},
          {"grad_input", product_of(formats.grad_input)},
          {"grad_weight", product_of(formats.grad_weight)}};
}

// {} -> every recipe.
Json answer_recipes(const Json& /*request*/) {
  Json list = Json::array();
  for (const RecipeInfo& info : all_recipes()) {
    list.push_back({{"name", info.name},
                    {"applies_to", info.applies_to},
                    {"description", info.description},
                    {"config", to_string(info.config)}});
  }
  return list;
}

// ---- the layer of experts -----------------------------------------------------
at::ScalarType dtype_of_text(const std::string& text) {
  return text == "float32" ? at::kFloat : at::kBFloat16;
}

// {"left13", "right13", "left2", "right2": formats by product, "x", "w13", "w2", "hidden": dtypes} ->
// why the kernels for experts do not take the call, or null; whether codes of x are kept.
Json answer_fused_experts(const Json& request) {
  const auto formats = [&](const char* name) {
    return request.at(name).get<std::array<int32_t, 3>>();
  };
  const auto dtype = [&](const char* name) {
    return dtype_of_text(request.at(name).get<std::string>());
  };
  const auto left13 = formats("left13"), right13 = formats("right13");
  const auto left2 = formats("left2"), right2 = formats("right2");
  const FusedCall call{{left13.data(), right13.data()},
                       {left2.data(), right2.data()},
                       dtype("x"),
                       dtype("w13"),
                       dtype("w2"),
                       dtype("hidden")};
  const std::optional<std::string> refusal = fused_refusal(call);
  return {{"refusal", refusal ? Json(*refusal) : Json()},
          {"keeps_codes", keeps_codes(call.formats13)}};
}

// {"tokens", "top_k", "columns", "experts", "keeps_codes"} -> bytes that a forward keeps.
Json answer_fused_experts_saved(const Json& request) {
  return KeptLayout::of(request.at("tokens"), request.at("top_k"), request.at("columns"),
                        request.at("experts"), request.at("keeps_codes"))
      .bytes;
}

// ---- conversion ---------------------------------------------------------------
OwnerKind owner_of(const std::string& name) {
  if (name == "linear") return OwnerKind::LINEAR;
  if (name == "embedding") return OwnerKind::EMBEDDING;
  if (name == "without_products") return OwnerKind::WITHOUT_PRODUCTS;
  return OwnerKind::OTHER;
}

ParameterInfo parameter_of(const Json& p) {
  return {.fqn = p.at("fqn"),
          .shape = p.at("shape").get<std::vector<int64_t>>(),
          .owner = owner_of(p.at("owner")),
          .dtype = p.at("dtype"),
          .owner_type = p.at("owner_type"),
          .has_known_use = p.at("has_known_use"),
          .is_replaced = p.at("is_replaced")};
}

std::vector<ParameterInfo> parameters_of(const Json& request) {
  std::vector<ParameterInfo> list;
  for (const Json& parameter : request.at("parameters")) list.push_back(parameter_of(parameter));
  return list;
}

Unmatched unmatched_of(const std::string& text) {
  if (text == "error") return Unmatched::ERROR;
  if (text == "warn") return Unmatched::WARN;
  MOE8_CHECK(text == "ignore", "quantize_", "unmatched", "expected error, warn or ignore, got '",
             text, "'");
  return Unmatched::IGNORE;
}

FqnToConfig fqn_to_config(const Json& pairs) {
  FqnToConfig config;
  for (const Json& pair : pairs) {
    config.emplace_back(pair.at(0).get<std::string>(), optional_config(pair.at(1)));
  }
  return config;
}

// {"parameters", "modules", "buffers", "config": [[KEY, TEXT or null]], "unmatched"} -> the report.
Json answer_resolve(const Json& request) {
  const ConversionReport report =
      resolve(parameters_of(request), request.at("modules").get<std::vector<std::string>>(),
              fqn_to_config(request.at("config")), unmatched_of(request.at("unmatched")),
              request.at("buffers").get<std::vector<std::string>>());
  return Json::parse(report.to_json());
}

// {"parameters", "config": TEXT} -> per parameter why the config cannot apply, and what converting
// it depends on.
Json answer_decide(const Json& request) {
  const Config config = config_of(request.at("config").get<std::string>());
  Json list = Json::array();
  for (const ParameterInfo& parameter : parameters_of(request)) {
    std::optional<std::string> obstacle = why_inapplicable(config, parameter);
    if (!obstacle) obstacle = why_unlikely(config, parameter);
    list.push_back({{"converts", !obstacle},
                    {"reason", obstacle.value_or(converted_reason(config, parameter))}});
  }
  return list;
}

// {"name", "names"} -> the names nearest to one that is none of them.
Json answer_nearest(const Json& request) {
  return nearest(request.at("name").get<std::string>(),
                 request.at("names").get<std::vector<std::string>>());
}

std::optional<std::string> optional_text(const Json& text) {
  return text.is_null() ? std::nullopt : std::optional(text.get<std::string>());
}

// A report -> its table for people.
Json answer_report_table(const Json& request) {
  ConversionReport report;
  for (const Json& row : request.at("parameters")) {
    report.rows.push_back({.fqn = row.at("fqn"),
                           .shape = row.at("shape").get<std::vector<int64_t>>(),
                           .dtype = row.at("dtype"),
                           .config = optional_config(row.at("config")),
                           .replaced = optional_config(row.at("replaced")),
                           .key = optional_text(row.at("key")),
                           .reason = row.at("reason")});
  }
  report.unmatched_keys = request.at("unmatched_keys").get<std::vector<std::string>>();
  return report.to_table();
}

Use use_of(const std::string& text) {
  for (const Use use : {Use::LOW_PRECISION, Use::HIGH_PRECISION, Use::BOTH}) {
    if (to_string(use) == text) return use;
  }
  return Use::NONE;
}

// {"weights"} of a check -> its table and its line.
Json answer_check_text(const Json& request) {
  ConversionCheck check;
  for (const Json& weight : request.at("weights")) {
    check.weights.push_back({.fqn = weight.at("fqn"),
                             .shape = weight.at("shape").get<std::vector<int64_t>>(),
                             .use = use_of(weight.at("use")),
                             .ops = weight.at("ops").get<std::vector<std::string>>(),
                             .remedy = weight.at("remedy")});
  }
  return {{"table", check.to_table()}, {"line", check.to_line()}};
}

// ---- the library ----------------------------------------------------------------
Json answer_about(const Json& /*request*/) {
  return {{"version", MOE8_NATIVE_VERSION},
          {"isa", cpu::to_string(cpu::best_isa())},
          {"bf16_products", cpu::prefers_bf16_products()},
          {"cuda", MOE8_NATIVE_CUDA != 0}};
}

struct Question {
  std::string_view name;
  Json (*answer)(const Json& request);
};
constexpr Question kQuestions[] = {{"about", answer_about},
                                   {"config", answer_config},
                                   {"recipes", answer_recipes},
                                   {"resolve", answer_resolve},
                                   {"decide", answer_decide},
                                   {"nearest", answer_nearest},
                                   {"report_table", answer_report_table},
                                   {"check_text", answer_check_text},
                                   {"fused_experts", answer_fused_experts},
                                   {"fused_experts_saved", answer_fused_experts_saved}};

Json ask(std::string_view name, const Json& request) {
  for (const Question& question : kQuestions) {
    if (question.name == name) return question.answer(request);
  }
  fail("moe8_ask", "question", concat("there is no question '", name, "'"));
}

}  // namespace

std::string& last_error() {
  thread_local std::string message;
  return message;
}

}  // namespace moe8::native

using namespace moe8::native;  // NOLINT(google-build-using-namespace): C functions stand in none

const char* moe8_error() {
  return last_error().c_str();
}

int moe8_ask(const char* question, const char* request, const char** answer) {
  thread_local std::string text;
  return guarded([&] {
    const nlohmann::json said = ask(question, nlohmann::json::parse(request));
    const nlohmann::json both = {{"answer", said}, {"warnings", take_warnings()}};
    text = both.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    *answer = text.c_str();
  });
}
