// SPDX-License-Identifier: BSD-3-Clause
// Reading TOML with errors that name file and line, and writing strings. Internal: the only header that
// sees toml++.
#pragma once

#include <toml++/toml.h>

#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

/// @param source  what positions name, normally the path.
/// @throws c10::Error with line and column of the first mistake.
toml::table parse_toml(const char* op, const std::string& text, const std::string& source);

/// "demo.toml:12"
std::string position_of(const toml::node& node, const std::string& source);

/// What a value is, for "got": "12 (an integer)", "a table".
std::string describe(const toml::node& node);

/// A string as TOML, for keys as well. toml++ 3.3 writes one with a line break as a multi-line literal,
/// which is no key and loses a break at its beginning when it is read: such strings are escaped.
std::string toml_string(const std::string& value);

/// Throws unless `name` is one of `names`: "expected one of ..., got 'stps'; did you mean steps?".
void check_known(const char* op, std::string_view name, const std::vector<std::string>& names,
                 const std::string& what, const std::string& position);

}  // namespace moe8
