// SPDX-License-Identifier: BSD-3-Clause
// Conversion files: TOML to rules, rules to what quantize_ takes.
#include "moe8/conversion_file.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/plain_text.h"
#include "convert/conversion_rules.h"
#include "convert/conversion_toml.h"
#include "io/file.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "conversion";

std::string text_of(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  return node.visit([](const auto& value) { return concat(value); });
}

std::string required_text(const toml::table& table, const char* key, const std::string& source) {
  const toml::node* node = table.get(key);
  MOE8_CHECK(node, kOp, key, "expected a string in [[convert]] at ", position_of(table, source),
             ", got nothing");
  MOE8_CHECK(node->is_string(), kOp, key, "expected a string at ", position_of(*node, source),
             ", got ", describe(*node));
  return text_of(*node);
}

// Tables of toml++ are sorted by key; a person reads a file by lines.
std::vector<const toml::key*> keys_by_position(const toml::table& table) {
  std::vector<const toml::key*> keys;
  for (const auto& [key, node] : table) keys.push_back(&key);
  std::sort(keys.begin(), keys.end(), [](const toml::key* a, const toml::key* b) {
    return a->source().begin < b->source().begin;
  });
  return keys;
}

ConversionRule rule_from(const toml::node& node, const std::string& source) {
  const toml::table* table = node.as_table();
  MOE8_CHECK(table, kOp, "convert", "expected tables at ", position_of(node, source), ", got ",
             describe(node));
  ConversionRule rule;
  rule.match = required_text(*table, "match", source);
  rule.recipe = required_text(*table, "recipe", source);
  rule.position = position_of(*table, source);
  for (const toml::key* key : keys_by_position(*table)) {
    if (*key == "match" || *key == "recipe") continue;
    const toml::node& value = *table->get(key->str());
    MOE8_CHECK(value.is_string() || value.is_boolean() || value.is_integer(), kOp,
               std::string(key->str()), "expected a string, boolean or integer at ",
               position_of(value, source), ", got ", describe(value));
    rule.fields.emplace_back(std::string(key->str()), text_of(value));
  }
  return rule;
}

std::optional<Config> config_of(const ConversionRule& rule) {
  if (rule.recipe == "none") {
    MOE8_CHECK(rule.fields.empty(), kOp, rule.fields.front().first,
               "expected no fields beside recipe = \"none\" at ", rule.position);
    return std::nullopt;
  }
  try {
    Config config = recipe(rule.recipe);
    for (const auto& [field, value] : rule.fields) set_field(config, field, value);
    return config;
  } catch (const c10::Error& error) {
    fail(kOp, rule.position, message_of(error));
  }
}

}  // namespace

bool ConversionRule::operator==(const ConversionRule& other) const {
  return match == other.match && recipe == other.recipe && fields == other.fields;
}

std::vector<ConversionRule> rules_from(const toml::node& convert, const std::string& source) {
  const toml::array* array = convert.as_array();
  MOE8_CHECK(array, kOp, "convert", "expected [[convert]] tables at ", position_of(convert, source),
             ", got ", describe(convert));
  std::vector<ConversionRule> rules;
  for (const toml::node& node : *array) rules.push_back(rule_from(node, source));
  return rules;
}

std::vector<ConversionRule> parse_conversion(const std::string& text, const std::string& source) {
  const toml::table document = parse_toml(kOp, text, source);
  for (const auto& [key, node] : document) {
    check_known(kOp, key.str(), {"convert"}, "table of a conversion file",
                position_of(node, source));
  }
  const toml::node* convert = document.get("convert");
  MOE8_CHECK(convert, kOp, "file", "expected [[convert]] tables, got none in ", source);
  return rules_from(*convert, source);
}

std::vector<ConversionRule> read_conversion_rules(const std::string& path) {
  return parse_conversion(read_text_file(kOp, path), path);
}

FqnToConfig read_conversion_file(const std::string& path) {
  return to_fqn_config(read_conversion_rules(path));
}

FqnToConfig to_fqn_config(const std::vector<ConversionRule>& rules) {
  FqnToConfig result;
  for (const ConversionRule& rule : rules) result.emplace_back(rule.match, config_of(rule));
  return result;
}

std::string to_toml(const std::vector<ConversionRule>& rules) {
  std::string text;
  for (const ConversionRule& rule : rules) {
    text += concat("\n[[convert]]\nmatch = ", toml_string(rule.match),
                   "\nrecipe = ", toml_string(rule.recipe), '\n');
    for (const auto& [field, value] : rule.fields) {
      text += concat(field, " = ", toml_string(value), '\n');
    }
  }
  return text;
}

}  // namespace moe8
