// SPDX-License-Identifier: BSD-3-Clause
// The report of a conversion as a table for people and as JSON for programs.
#include "convert/report.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/nearest.h"
#include "base/printable.h"
#include "base/text_table.h"

namespace moe8 {
namespace {

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
  return c10::str("(", join(sizes), ")");
}

Line line_of(const ConversionRow& row) {
  const bool plain = row.config && row.reason == "converted";
  std::string why = row.key ? "'" + *row.key + "'" : "";
  if (!plain) why += (why.empty() ? "" : ": ") + row.reason;
  return {printable(row.fqn), shape_text(row.shape), row.dtype,
          row.config ? name_of(*row.config) : "-", printable(why)};
}

nlohmann::json json_of(const std::optional<Config>& config) {
  return config ? nlohmann::json(name_of(*config)) : nlohmann::json();
}

}  // namespace

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
    text += "Keys that decided nothing: '" + printable(join(report.unmatched_keys, "', '")) + "'.\n";
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
  // Names come from checkpoints and may hold any bytes; JSON must still be valid.
  return report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::ostream& operator<<(std::ostream& out, const ConversionReport& report) {
  return out << report.to_table();
}

}  // namespace moe8
