// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/sqnr_maps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "base/plain_text.h"
#include "formats/elem.h"
#include "moe8/config.h"
#include "numerics/bounds.h"
#include "train/report/heat_map.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;
using Looks = std::vector<NumericsLine>;

constexpr double kHighestSqnr = 45;  // dB; above, colours say nothing more
constexpr std::array kProducts{"out", "grad_input", "grad_weight"};

// "layers.1.attention.wq" says as much as with ".weight" behind it.
std::string short_name(const std::string& weight) {
  constexpr std::string_view kEnd = ".weight";
  return weight.ends_with(kEnd) ? weight.substr(0, weight.size() - kEnd.size()) : weight;
}

// Of the first look that saw any, in its order.
std::vector<std::string> weights_of(const Looks& looks) {
  std::vector<std::string> names;
  for (const NumericsLine& look : looks) {
    for (const NumericsLine::Product& product : look.products) {
      if (names.empty() || names.back() != product.weight) names.push_back(product.weight);
    }
    if (!names.empty()) break;
  }
  return names;
}

HeatPanel panel_of(const Looks& looks, const std::vector<std::string>& weights,
                   const std::string& product) {
  const size_t count = columns_for(weights.size(), looks.size());
  std::map<std::string, size_t> row_of;
  for (size_t r = 0; r < weights.size(); ++r) row_of[weights[r]] = r;
  HeatPanel panel{.title = product, .columns = std::vector<std::string>(count)};
  panel.rows.assign(weights.size(), std::vector<double>(count, NAN));
  for (size_t i = 0; i < looks.size(); ++i) {
    const size_t column = i * count / looks.size();
    if (panel.columns[column].empty()) {
      panel.columns[column] = "step " + std::to_string(looks[i].step);
    }
    for (const NumericsLine::Product& p : looks[i].products) {
      const auto row = row_of.find(p.weight);
      if (p.product != product || row == row_of.end()) continue;
      double& cell = panel.rows[row->second][column];
      cell = std::isnan(cell) ? p.sqnr_db : std::min(cell, p.sqnr_db);  // the worst of a column
    }
  }
  return panel;
}

// The lowest of all runs, so that their colours mean the same.
double lowest_sqnr(const Runs& runs) {
  double lowest = kHighestSqnr - 1;
  for (const RunRecord& run : runs) {
    for (const NumericsLine& look : run.numerics) {
      for (const NumericsLine::Product& p : look.products) lowest = std::min(lowest, p.sqnr_db);
    }
  }
  return lowest;
}

// The bounds of the formats that a run's products have: "bound of e4m3, 19 dB".
std::map<double, std::string> bounds_of(const RunRecord& run) {
  std::map<double, std::string> bounds;
  for (const NumericsLine& look : run.numerics) {
    for (const NumericsLine::Product& p : look.products) {
      const auto bound = default_bound(NumericsQuantity::PRODUCT_SQNR, p.elem);
      if (!bound || !p.elem || bounds.contains(bound->least)) continue;
      bounds[bound->least] =
          "bound of " + std::string(to_string(*p.elem)) + formatted(": %.0f dB", bound->least);
    }
  }
  return bounds;
}

std::string map_of(const RunRecord& run, double low) {
  const std::vector<std::string> weights = weights_of(run.numerics);
  HeatMap map{.label = "SQNR of every product of " + run.name + " by weight and step",
              .unit = "dB",
              .low = low,
              .high = kHighestSqnr};
  for (const std::string& weight : weights) map.rows.push_back(short_name(weight));
  for (const char* product : kProducts) {
    map.panels.push_back(panel_of(run.numerics, weights, product));
  }
  const auto bounds = bounds_of(run);
  map.marks.assign(bounds.begin(), bounds.end());
  if (bounds.size() == 1) map.least = bounds.begin()->first;  // else cells have bounds of their own
  return to_html(map);
}

}  // namespace

std::string sqnr_maps(const Runs& runs) {
  double low = lowest_sqnr(runs);
  for (const RunRecord& run : runs) {
    for (const auto& [bound, name] : bounds_of(run)) low = std::min(low, bound);
  }
  low = std::floor(std::max(0.0, low - 1));
  std::string maps;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (weights_of(runs[i].numerics).empty()) continue;
    maps += "<h3>" + run_label(i, runs[i].name) + "</h3>\n" + map_of(runs[i], low);
  }
  if (maps.empty()) return "";
  return section("Error of the products", maps,
                 "SQNR of sampled results of the three products of every converted weight against "
                 "high precision; 6 dB less is twice the error. Where looks share a column, the "
                 "worst counts. Red: below the bound, with a warning.");
}

}  // namespace moe8
