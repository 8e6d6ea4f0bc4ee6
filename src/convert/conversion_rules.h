// SPDX-License-Identifier: BSD-3-Clause
// The rules of conversion files (moe8/conversion_file.h) as they were written: what run.toml keeps.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe8/quantize_model.h"

namespace moe8 {

/// One [[convert]] table.
struct ConversionRule {
  std::string match;
  std::string recipe;
  std::vector<std::pair<std::string, std::string>> fields;  // overrides, in the order of the file
  std::string position;                                     // "file:line" for messages

  bool operator==(const ConversionRule& other) const;  // position aside
};

/// @throws c10::Error naming file, line and what was expected.
std::vector<ConversionRule> read_conversion_rules(const std::string& path);
std::vector<ConversionRule> parse_conversion(const std::string& text, const std::string& source);

/// The keys and configs that quantize_ takes, in the order of the rules.
/// @throws c10::Error naming file, line and the valid names, for an unknown recipe or field.
FqnToConfig to_fqn_config(const std::vector<ConversionRule>& rules);

/// The rules as TOML that parse_conversion reads back.
std::string to_toml(const std::vector<ConversionRule>& rules);

}  // namespace moe8
