// SPDX-License-Identifier: BSD-3-Clause
// The report of a conversion as a table for people and as JSON for programs.
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/nearest.h"
#include "base/printable.h"
#include "moe8/quantize_model.h"

namespace moe8 {
namespace {

constexpr size_t kColumns = 5;
using Line = std::array<std::string, kColumns>;

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

// Characters, not bytes: continuation bytes of UTF-8 take no column.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::string aligned(const std::vector<Line>& lines) {
  std::array<size_t, kColumns> widths{};
  for (const Line& line : lines) {
    for (size_t i = 0; i < kColumns; ++i) widths[i] = std::max(widths[i], width_of(line[i]));
  }
  std::string text;
  for (const Line& line : lines) {
    for (size_t i = 0; i + 1 < kColumns; ++i) {
      text += line[i] + std::string(widths[i] - width_of(line[i]) + 2, ' ');
    }
    text += line.back() + "\n";
  }
  return text;
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

std::string ConversionReport::to_table() const {
  std::vector<Line> lines{{"parameter", "shape", "dtype", "recipe", "decided by"}};
  for (const ConversionRow& row : rows) lines.push_back(line_of(row));
  std::string text = aligned(lines);
  text += std::to_string(converted().size()) + " of " + std::to_string(rows.size()) +
          " parameters converted.\n";
  if (!unmatched_keys.empty()) {
    text += "Keys that decided nothing: '" + printable(join(unmatched_keys, "', '")) + "'.\n";
  }
  return text;
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
