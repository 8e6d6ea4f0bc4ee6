// SPDX-License-Identifier: BSD-3-Clause
// Reading TOML with errors that name file and line.
#include "convert/toml_input.h"

#include <algorithm>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "convert/toml_text.h"

namespace moe8 {
namespace {

constexpr size_t kLongestQuote = 40;  // of a wrong value, in a message

std::string_view kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date or time";
  }
}

}  // namespace

toml::table parse_toml(const char* op, const std::string& text, const std::string& source) {
  try {
    return toml::parse(toml_text(op, text, source), source);
  } catch (const toml::parse_error& error) {
    const auto at = error.source().begin;
    fail(op, concat(source, ":", at.line, ":", at.column),
         concat("expected valid TOML, got: ", error.description()));
  }
}

std::string position_of(const toml::node& node, const std::string& source) {
  const auto line = node.source().begin.line;
  return line == 0 ? source : concat(source, ":", line);
}

std::string describe(const toml::node& node) {
  if (node.is_table() || node.is_array()) return std::string(kind_of(node));
  std::string quote;
  if (const auto* string = node.as_string()) {
    quote = "'" + string->get() + "'";
  } else {
    quote = node.visit([](const auto& value) { return concat(value); });
  }
  if (quote.size() > kLongestQuote) quote = quote.substr(0, kLongestQuote) + "...";
  return concat(quote, " (", kind_of(node), ")");
}

std::string toml_string(const std::string& value) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; };
  if (std::ranges::none_of(value, is_control)) return concat(toml::value<std::string>(value));
  std::string text = "\"";
  for (const char c : value) {
    if (is_control(c)) {
      text += formatted("\\u%04X", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      if (c == '"' || c == '\\') text += '\\';
      text += c;
    }
  }
  return text + '"';
}

void check_known(const char* op, std::string_view name, const std::vector<std::string>& names,
                 const std::string& what, const std::string& position) {
  for (const std::string& known : names) {
    if (known == name) return;
  }
  fail(op, std::string(name),
       concat("there is no such ", what, " (", position,
              "). The nearest: ", join(nearest(name, names)), ". All: ", join(names)));
}

}  // namespace moe8
