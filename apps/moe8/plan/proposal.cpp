// SPDX-License-Identifier: BSD-3-Clause
#include "plan/proposal.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "base/check.h"
#include "base/nearest.h"
#include "convert/pattern.h"
#include "train/config/recipe_rules.h"

namespace moe8 {
namespace {

constexpr std::string_view kPattern = "re:";

// ---- names ------------------------------------------------------------------
std::vector<std::string> parts_of(const std::string& fqn) {
  std::vector<std::string> parts{""};
  for (const char c : fqn) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

bool is_number(const std::string& part) {
  return !part.empty() && std::all_of(part.begin(), part.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0; });
}

/// A part of a name as a pattern that matches it and, for numbers, its like.
std::string pattern_of(const std::string& part) {
  if (is_number(part)) return "\\d+";
  std::string pattern;
  for (const char c : part) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_') pattern += '\\';
    pattern += c;
  }
  return pattern;
}

// ---- what a parameter is ----------------------------------------------------
// The names by which models call what stays in high precision. Of whole parts: gate_proj is no
// gate.
constexpr std::array<std::string_view, 9> kKept{
    "gate", "router", "wg", "lm_head", "output", "head", "score", "classifier", "embed_out"};

bool computes(const ParameterInfo& parameter) {
  return parameter.dtype == "bfloat16" || parameter.dtype == "float32";
}

bool is_expert_weight(const ParameterInfo& parameter) {
  return computes(parameter) && parameter.shape.size() == 3 &&
         parameter.fqn.find("expert") != std::string::npos;
}

bool is_convertible_linear(const ParameterInfo& parameter) {
  if (!computes(parameter) || !is_linear_weight(parameter)) return false;
  const std::vector<std::string> parts = parts_of(parameter.fqn);
  const std::string& module = parts.size() < 2 ? parts.back() : parts[parts.size() - 2];
  return std::find(kKept.begin(), kKept.end(), module) == kKept.end();
}

// ---- patterns ---------------------------------------------------------------
/// Names that differ in numbers, and in the part before `ending`.
struct Siblings {
  std::string parent;              // pattern
  std::vector<std::string> names;  // patterns
  std::string ending;              // pattern

  std::string match() const {
    const std::string choice = names.size() == 1 ? names.front() : "(" + join(names, "|") + ")";
    std::string all = parent;
    if (!all.empty()) all += "\\.";
    return std::string(kPattern) + all + choice + ending;
  }
};

/// Groups names by their parents; `tail` parts at the end are the ending.
class SiblingList {
 public:
  explicit SiblingList(size_t tail) : tail_(tail) {}

  void add(const std::string& fqn) {
    std::vector<std::string> parts = parts_of(fqn);
    for (std::string& part : parts) part = pattern_of(part);
    const size_t ending_at = parts.size() - std::min(tail_, parts.size() - 1);
    const auto text = [&](size_t begin, size_t end) {
      return join({parts.begin() + static_cast<std::ptrdiff_t>(begin),
                   parts.begin() + static_cast<std::ptrdiff_t>(end)},
                  "\\.");
    };
    const std::string parent = text(0, ending_at - 1), name = parts[ending_at - 1];
    std::string ending = text(ending_at, parts.size());
    if (!ending.empty()) ending = "\\." + ending;
    Siblings& group = find(parent, ending);
    if (std::find(group.names.begin(), group.names.end(), name) == group.names.end()) {
      group.names.push_back(name);
    }
  }

  const std::vector<Siblings>& groups() const { return groups_; }

 private:
  Siblings& find(const std::string& parent, const std::string& ending) {
    for (Siblings& group : groups_) {
      if (group.parent == parent && group.ending == ending) return group;
    }
    return groups_.emplace_back(Siblings{parent, {}, ending});
  }

  size_t tail_;
  std::vector<Siblings> groups_;
};

void add_rules(std::vector<ConversionRule>& rules, const SiblingList& list,
               const ConversionRule& like) {
  for (const Siblings& group : list.groups()) {
    rules.push_back(like);
    rules.back().match = group.match();
  }
}

}  // namespace

bool name_any(const std::vector<ConversionRule>& rules,
              const std::vector<ParameterInfo>& parameters) {
  return std::any_of(rules.begin(), rules.end(), [&](const ConversionRule& rule) {
    const Pattern pattern(std::string_view(rule.match).substr(kPattern.size()));
    return std::any_of(parameters.begin(), parameters.end(),
                       [&](const ParameterInfo& one) { return pattern.matches(one.fqn); });
  });
}

Proposal propose_rules(const std::vector<ParameterInfo>& parameters, const std::string& recipe) {
  const std::vector<ConversionRule> own = recipe_rules(recipe);  // experts first, then Linears
  const bool has_experts = own.size() == 2;
  SiblingList experts(0), linears(1);
  Proposal proposal;
  for (const ParameterInfo& parameter : parameters) {
    if (has_experts && is_expert_weight(parameter)) experts.add(parameter.fqn);
    if (!is_convertible_linear(parameter)) continue;
    linears.add(parameter.fqn);
    const std::vector<std::string> parts = parts_of(parameter.fqn);
    for (size_t i = 1; i < parts.size(); ++i) {
      const bool expert = parts[i - 1].find("expert") != std::string::npos;
      proposal.separate_experts |= expert && is_number(parts[i]);
    }
  }
  if (has_experts) add_rules(proposal.rules, experts, own.front());
  add_rules(proposal.rules, linears, own.back());
  MOE8_CHECK(!proposal.rules.empty(), "plan", "--model", "expected bfloat16 or float32 weights of ",
             has_experts ? "experts (3-D) or " : "", "Linears (2-D, *.weight), got none of ",
             parameters.size(), " parameters");
  return proposal;
}

std::string to_text(const Proposal& proposal) {
  std::string text =
      "The names are not those of moe8's own transformer, so rules were made from names and shapes.\n"
      "Routers, embeddings and the output projection stay in high precision. As a conversion file,\n"
      "for --convert here and for quantize_:\n" +
      to_toml(proposal.rules);
  if (proposal.separate_experts) {
    text +=
        "\nEach expert is a Linear of its own in this checkpoint. A model that stacks them into one\n"
        "(E, N, K) weight for at::_grouped_mm computes all experts in one product and takes the recipe\n"
        "itself: match that weight's name.\n";
  }
  return text;
}

}  // namespace moe8
