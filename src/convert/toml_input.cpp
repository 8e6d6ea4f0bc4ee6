// SPDX-License-Identifier: BSD-3-Clause
// Reading TOML with errors that name file and line.
#include "convert/toml_input.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/check.h"
#include "base/nearest.h"
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

std::string read_text_file(const char* op, const std::string& path) {
  std::error_code error;
  const bool regular = std::filesystem::is_regular_file(path, error);
  MOE8_CHECK(regular, op, "file", "expected a readable file, got '", path, "'",
             std::filesystem::exists(path, error) ? ", which is not a regular file"
                                                  : ", which does not exist");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  MOE8_CHECK(in.good() || in.eof(), op, "file", "expected a readable file, got '", path, "'");
  return text.str();
}

toml::table parse_toml(const char* op, const std::string& text, const std::string& source) {
  try {
    return toml::parse(toml_text(op, text, source), source);
  } catch (const toml::parse_error& error) {
    const auto at = error.source().begin;
    fail(op, c10::str(source, ":", at.line, ":", at.column),
         c10::str("expected valid TOML, got: ", error.description()));
  }
}

std::string position_of(const toml::node& node, const std::string& source) {
  const auto line = node.source().begin.line;
  return line == 0 ? source : c10::str(source, ":", line);
}

std::string describe(const toml::node& node) {
  if (node.is_table() || node.is_array()) return std::string(kind_of(node));
  std::string quote;
  if (const auto* string = node.as_string()) {
    quote = "'" + string->get() + "'";
  } else {
    std::ostringstream text;
    node.visit([&](const auto& value) { text << value; });
    quote = text.str();
  }
  if (quote.size() > kLongestQuote) quote = quote.substr(0, kLongestQuote) + "...";
  return c10::str(quote, " (", kind_of(node), ")");
}

void check_known(const char* op, std::string_view name, const std::vector<std::string>& names,
                 const std::string& what, const std::string& position) {
  for (const std::string& known : names) {
    if (known == name) return;
  }
  fail(op, std::string(name),
       c10::str("there is no such ", what, " (", position,
                "). The nearest: ", join(nearest(name, names)), ". All: ", join(names)));
}

}  // namespace moe8
