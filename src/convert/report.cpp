// SPDX-License-Identifier: BSD-3-Clause
// The reports on a conversion, and on the use of what was converted, as tables for people and as
// JSON for programs.
#include "convert/report.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string_view>
#include <utility>

#include "base/nearest.h"
#include "base/plain_text.h"
#include "base/printable.h"
#include "base/text_table.h"

namespace moe8 {
namespace {

constexpr std::string_view kConverted = "converted";
using Line = std::vector<std::string>;

// The recipe's name where the config is a recipe's, so that a table stays narrow.
std::string name_of(const Config& config) {
  for (const RecipeInfo& info : all_recipes()) {
    if (info.config == config) return info.name;
  }
  return to_string(config);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  sizes.reserve(shape.size());
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return concat("(", join(sizes), ")");
}

Line line_of(const ConversionRow& row) {
  std::string why = row.key ? "'" + *row.key + "'" : "";
  if (row.config && row.key && row.reason.starts_with(kConverted)) {
    const std::string more = row.reason.substr(kConverted.size());  // " if used through ..."
    why += (more.starts_with(' ') ? "," : "") + more;
  } else {
    why += (why.empty() ? "" : ": ") + row.reason;
  }
  return {printable(row.fqn), shape_text(row.shape), row.dtype,
          row.config ? name_of(*row.config) : "-", printable(why)};
}

nlohmann::json json_of(const std::optional<Config>& config) {
  return config ? nlohmann::json(name_of(*config)) : nlohmann::json();
}

// Names come from checkpoints and may hold any bytes; JSON must still be valid.
std::string text_of(const nlohmann::json& json) {
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

// ---- of a conversion ----------------------------------------------------------
std::vector<ConversionRow> ConversionReport::converted() const {
  std::vector<ConversionRow> list;
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(list),
               [](const ConversionRow& row) { return row.config.has_value(); });
  return list;
}

std::string fitted_table(const ConversionReport& report, size_t columns) {
  std::vector<Line> lines{{"parameter", "shape", "dtype", "recipe", "decided by"}};
  for (const ConversionRow& row : report.rows) lines.push_back(line_of(row));
  std::string text = text_table(lines, {.columns = columns});
  text += std::to_string(report.converted().size()) + " of " + std::to_string(report.rows.size()) +
          " parameters converted.\n";
  if (!report.unmatched_keys.empty()) {
    text +=
        "Keys that decided nothing: '" + printable(join(report.unmatched_keys, "', '")) + "'.\n";
  }
  return text;
}

std::string ConversionReport::to_table() const {
  return fitted_table(*this, 0);
}

std::string ConversionReport::to_json() const {
  nlohmann::json parameters = nlohmann::json::array();
  for (const ConversionRow& row : rows) {
    parameters.push_back({{"fqn", row.fqn},
                          {"shape", row.shape},
                          {"dtype", row.dtype},
                          {"config", json_of(row.config)},
                          {"replaced", json_of(row.replaced)},
                          {"key", row.key ? nlohmann::json(*row.key) : nlohmann::json()},
                          {"reason", row.reason}});
  }
  const nlohmann::json report = {{"parameters", parameters},
                                 {"converted", converted().size()},
                                 {"unmatched_keys", unmatched_keys}};
  return text_of(report);
}

std::ostream& operator<<(std::ostream& out, const ConversionReport& report) {
  return out << report.to_table();
}

// ---- of the use of what was converted -----------------------------------------
std::string_view to_string(Use use) {
  switch (use) {
    case Use::NONE:
      return "none";
    case Use::LOW_PRECISION:
      return "low precision";
    case Use::HIGH_PRECISION:
      return "high precision";
    case Use::BOTH:
      return "both";
  }
  return "invalid";
}

std::vector<WeightUse> ConversionCheck::complaints() const {
  std::vector<WeightUse> list;
  std::copy_if(weights.begin(), weights.end(), std::back_inserter(list),
               [](const WeightUse& weight) { return !weight.remedy.empty(); });
  return list;
}

std::string ConversionCheck::to_table() const {
  std::vector<Line> lines{{"converted weight", "shape", "products ran in", "what to do"}};
  for (const WeightUse& weight : weights) {
    lines.push_back({printable(weight.fqn), shape_text(weight.shape),
                     std::string(to_string(weight.use)), printable(weight.remedy)});
  }
  return (weights.empty() ? "" : text_table(lines)) +
         std::to_string(weights.size() - complaints().size()) + " of " +
         std::to_string(weights.size()) +
         " converted weights had all their products in low precision.\n";
}

// Weights with the same remedy share it.
std::string ConversionCheck::to_line() const {
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;
  for (const WeightUse& weight : complaints()) {
    const auto same = std::find_if(groups.begin(), groups.end(),
                                   [&](const auto& group) { return group.first == weight.remedy; });
    auto& group = same == groups.end() ? groups.emplace_back(weight.remedy, Line()) : *same;
    group.second.push_back(weight.fqn + " " + shape_text(weight.shape));
  }
  if (groups.empty()) return "";
  std::vector<std::string> texts;
  texts.reserve(groups.size());
  for (const auto& [remedy, names] : groups) texts.push_back(join(names) + ": " + remedy + ".");
  return concat("expected products in low precision of every converted weight, got high ",
                "precision or none of ", complaints().size(), ": ", join(texts, " "));
}

std::string ConversionCheck::to_json() const {
  nlohmann::json list = nlohmann::json::array();
  for (const WeightUse& weight : weights) {
    list.push_back({{"fqn", weight.fqn},
                    {"shape", weight.shape},
                    {"use", to_string(weight.use)},
                    {"high_precision_ops", weight.ops},
                    {"remedy", weight.remedy}});
  }
  return text_of({{"weights", list}, {"complaints", complaints().size()}});
}

std::ostream& operator<<(std::ostream& out, const ConversionCheck& check) {
  return out << check.to_table();
}

}  // namespace moe8
