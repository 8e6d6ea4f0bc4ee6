// SPDX-License-Identifier: BSD-3-Clause
// [[convert]] tables inside any TOML document. Internal: sees toml++; see conversion_rules.h.
#pragma once

#include <string>
#include <vector>

#include "convert/conversion_rules.h"
#include "convert/toml_input.h"

namespace moe8 {

/// The rules of the array `convert`. @throws as read_conversion_rules.
std::vector<ConversionRule> rules_from(const toml::node& convert, const std::string& source);

}  // namespace moe8
