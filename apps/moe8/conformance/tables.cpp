// SPDX-License-Identifier: BSD-3-Clause
#include "conformance/tables.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "convert/resolve.h"
#include "io/file.h"

namespace moe8 {
namespace {

using nlohmann::json;
using Conversions = std::map<std::string, std::string>;  // parameter -> name of its config

constexpr const char* kTablesOp = "fqn_to_config";
constexpr const char* kBar = "the same parameters";

struct Model {
  std::vector<std::string> modules;
  std::vector<ParameterInfo> parameters;
};

// What a table means by a config's name. Which parameters it converts follows from its type alone.
Config config_named(const std::string& name) {
  for (const RecipeInfo& info : all_recipes()) {
    if (info.name == name) return info.config;
  }
  static const std::array<std::pair<std::string_view, Config>, 4> families = {{
      {"linear", MXLinearConfig{}},
      {"float8", Float8LinearConfig{}},
      {"mx", MXFP8GroupedMMConfig{}},
      {"fp8", FP8GroupedMMConfig{}},
  }};
  for (const auto& [prefix, config] : families) {
    if (name.starts_with(prefix)) return config;
  }
  fail(
      kTablesOp, "config",
      "expected a recipe or a name that starts with linear, float8, mx or fp8, got '" + name + "'");
}

OwnerKind owner_named(const std::string& type) {
  if (type == "Linear") return OwnerKind::LINEAR;
  return type == "Embedding" ? OwnerKind::EMBEDDING : OwnerKind::OTHER;
}

Model model_of(const json& file) {
  Model model;
  std::map<std::string, OwnerKind> owners;
  for (const json& module : file.at("modules")) {
    const auto name = module.at(0).get<std::string>();
    model.modules.push_back(name);
    owners[name] = owner_named(module.at(1).get<std::string>());
  }
  for (const json& parameter : file.at("parameters")) {
    const auto fqn = parameter.at(0).get<std::string>();
    const size_t dot = fqn.rfind('.');
    const auto owner = owners.find(dot == std::string::npos ? "" : fqn.substr(0, dot));
    model.parameters.push_back({.fqn = fqn,
                                .shape = parameter.at(1).get<std::vector<int64_t>>(),
                                .owner = owner == owners.end() ? OwnerKind::OTHER : owner->second});
  }
  return model;
}

Outcome compare(const Conversions& got, const Conversions& expected) {
  const auto shown = [](const Conversions& list, const std::string& fqn) {
    const auto found = list.find(fqn);
    return found == list.end() ? std::string("nothing") : found->second;
  };
  std::vector<std::string> differences;
  Conversions all = expected;
  all.insert(got.begin(), got.end());
  for (const auto& [fqn, name] : all) {
    if (shown(got, fqn) == shown(expected, fqn)) continue;
    differences.push_back(
        concat(fqn, ": expected ", shown(expected, fqn), ", got ", shown(got, fqn)));
  }
  if (!differences.empty()) return {false, join(differences, "; "), kBar};
  return {true, concat(got.size(), " of ", expected.size(), " converted as expected"), kBar};
}

// The error must speak of each of these names.
Outcome compare_error(const std::string& message, const json& names) {
  for (const json& name : names) {
    if (message.find(name.get<std::string>()) != std::string::npos) continue;
    return {false, concat("the error does not name '", name.get<std::string>(), "': ", message),
            "an error"};
  }
  return {true, concat("error names ", names.size(), " of ", names.size()), "an error"};
}

Outcome check_table(const Model& model, const json& table) {
  FqnToConfig keys;
  std::map<std::string, std::string> name_of_key;
  for (const json& pair : table.at("config")) {
    const auto key = pair.at(0).get<std::string>();
    const json& name = pair.at(1);
    keys.emplace_back(key, std::nullopt);
    if (name.is_null()) continue;
    name_of_key[key] = name.get<std::string>();
    keys.back().second = config_named(name_of_key[key]);
  }
  const json& expected = table.at("expected");
  const bool error_expected = expected.contains("error_names");
  ConversionReport report;
  try {
    // torchao ignores keys that match nothing, and so do its tables.
    report = resolve(model.parameters, model.modules, keys,
                     error_expected ? Unmatched::ERROR : Unmatched::IGNORE);
  } catch (const c10::Error& error) {
    if (error_expected) return compare_error(message_of(error), expected.at("error_names"));
    throw;
  }
  Conversions got;
  for (const ConversionRow& row : report.converted())
    got[row.fqn] = name_of_key.at(row.key.value());
  if (error_expected) {
    return {false, concat("no error; ", got.size(), " parameters converted"), "an error"};
  }
  return compare(got, expected.at("converted").get<Conversions>());
}

json read_json(const std::string& path) {
  json file = json::parse(read_text_file(kTablesOp, path), nullptr, false);
  MOE8_CHECK(file.is_object(), kTablesOp, path, "expected a JSON object, got ",
             file.is_discarded() ? "invalid JSON" : file.type_name());
  return file;
}

}  // namespace

void check_tables(const std::string& path,
                  const std::function<void(size_t number, const Outcome&)>& report) {
  const json file = read_json(path);
  MOE8_CHECK(file.value("kind", "") == "fqn_to_config", kTablesOp, "kind",
             "expected fqn_to_config, got '", file.value("kind", ""), "'");
  const Model model = model_of(file);
  const json& tables = file.at("tables");
  MOE8_CHECK(tables.is_array() && !tables.empty(), kTablesOp, "tables", "expected a list, got ",
             tables.empty() ? "an empty one" : tables.type_name());
  for (size_t i = 0; i < tables.size(); ++i) {
    try {
      report(i, check_table(model, tables[i]));
    } catch (const std::exception& error) {
      report(i, {false, message_of(error), kBar});
    }
  }
}

}  // namespace moe8
