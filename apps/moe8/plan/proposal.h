// SPDX-License-Identifier: BSD-3-Clause
// Conversion rules for a checkpoint whose names are not those of moe8's own transformer: which of
// its parameters are experts, which Linears, and patterns for both.
#pragma once

#include <string>
#include <vector>

#include "convert/conversion_rules.h"
#include "convert/resolve.h"

namespace moe8 {

struct Proposal {
  std::vector<ConversionRule> rules;
  bool separate_experts =
      false;  // "experts.3.gate_proj": each is a Linear, not a slice of (E, N, K)
};

/// Whether a rule's pattern matches the name of a parameter.
bool name_any(const std::vector<ConversionRule>& rules,
              const std::vector<ParameterInfo>& parameters);

/// Rules that give every expert weight (3-D, "expert" in its name) the recipe, or what
/// recipe_rules.h puts beside it, and the same for Linears, but for routers, the output projection
/// and embeddings. Numbers in names become \d+, siblings one alternative: a rule per kind of
/// module.
/// @throws c10::Error when there is nothing that the recipe could apply to.
Proposal propose_rules(const std::vector<ParameterInfo>& parameters, const std::string& recipe);

/// The rules as a conversion file, and what to know about them.
std::string to_text(const Proposal& proposal);

}  // namespace moe8
