// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/plain_text.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

constexpr int kRowHeight = 14;      // pixels, as in page.css
constexpr size_t kMaxCells = 5000;  // of a panel
constexpr size_t kMinColumns = 10, kMaxColumns = 120;

// Dark to light, equally spaced; in the manner of viridis: even steps of lightness, and readable
// without colour.
struct Rgb {
  double r, g, b;
};
constexpr std::array<Rgb, 5> kScale{
    {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}}};

std::string scale_colour(double part) {
  const double at = std::clamp(part, 0.0, 1.0) * static_cast<double>(kScale.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), kScale.size() - 2);
  const double f = at - static_cast<double>(i);
  const auto mix = [&](double a, double b) {
    return static_cast<int>(std::lround(a + f * (b - a)));
  };
  return formatted("#%02x%02x%02x", mix(kScale[i].r, kScale[i + 1].r),
                   mix(kScale[i].g, kScale[i + 1].g), mix(kScale[i].b, kScale[i + 1].b));
}

double part_of(const HeatMap& map, double value) {
  return map.high > map.low ? (value - map.low) / (map.high - map.low) : 1;
}

std::string value_text(double value, const std::string& unit) {
  return std::isinf(value) ? "exact" : formatted("%.3g ", value) + unit;
}

std::string tip_of(const HeatMap& map, const HeatPanel& panel, size_t r, size_t c) {
  std::string tip =
      map.rows[r] + ", " + panel.columns[c] + ": " + value_text(panel.rows[r][c], map.unit);
  if (!panel.notes.empty() && !panel.notes[r][c].empty()) tip += ", " + panel.notes[r][c];
  return tip;
}

// One unit a cell, whatever its size on the screen. Outlined ones last, over their neighbours.
std::string cells(const HeatMap& map, const HeatPanel& panel) {
  std::string inside, outside;
  for (size_t r = 0; r < panel.rows.size(); ++r) {
    for (size_t c = 0; c < panel.rows[r].size(); ++c) {
      const double value = panel.rows[r][c];
      if (std::isnan(value)) continue;
      const bool out = value < map.least || value > map.most;
      (out ? outside : inside) +=
          formatted("<rect%s x=\"%zu\" y=\"%zu\" width=\"1.02\" height=\".93\" fill=\"%s\">",
                    out ? " class=\"out\"" : "", c, r, scale_colour(part_of(map, value)).c_str()) +
          "<title>" + escaped(tip_of(map, panel, r, c)) + "</title></rect>\n";
    }
  }
  return formatted(
             "<svg class=\"cells\" viewBox=\"0 0 %zu %zu\" preserveAspectRatio=\"none\" "
             "style=\"height:%zupx\">",
             std::max<size_t>(1, panel.columns.size()), std::max<size_t>(1, map.rows.size()),
             map.rows.size() * kRowHeight) +
         inside + outside + "</svg>";
}

std::string names(const HeatMap& map, const char* kind) {
  std::string html = formatted("<div class=\"%s\">", kind);
  for (const std::string& row : map.rows) html += "<span>" + escaped(row) + "</span>";
  return html + "</div>";
}

std::string panel_html(const HeatMap& map, const HeatPanel& panel) {
  std::string ends;
  if (!panel.columns.empty()) ends += "<span>" + escaped(panel.columns.front()) + "</span>";
  if (panel.columns.size() > 1) ends += "<span>" + escaped(panel.columns.back()) + "</span>";
  return "<div class=\"panel\"><h4>" + escaped(panel.title) + "</h4><div class=\"row\">" +
         names(map, "names") + cells(map, panel) + "</div><div class=\"ends\">" + ends +
         "</div></div>\n";
}

// The colours from low to high, with numbers at the ends and marks below.
std::string key(const HeatMap& map) {
  constexpr int kSteps = 32;
  constexpr double kFrom = 50, kTo = 250;
  std::string out =
      formatted(
          "<svg class=\"key\" viewBox=\"0 0 340 34\" role=\"img\" "
          "aria-label=\"Colours from %.3g to %.3g ",
          map.low, map.high) +
      escaped(map.unit) +
      formatted("\"><text x=\"%.0f\" y=\"12\" text-anchor=\"end\">%.3g</text>", kFrom - 6, map.low);
  const double step = (kTo - kFrom) / kSteps;
  for (int i = 0; i < kSteps; ++i) {
    out += formatted("<rect x=\"%.2f\" y=\"2\" width=\"%.2f\" height=\"12\" fill=\"%s\"/>",
                     kFrom + i * step, step + 0.2, scale_colour((i + 0.5) / kSteps).c_str());
  }
  out += formatted("<text x=\"%.0f\" y=\"12\">%.3g ", kTo + 6, map.high) + escaped(map.unit) +
         "</text>";
  for (const auto& [value, name] : map.marks) {
    const double x = kFrom + std::clamp(part_of(map, value), 0.0, 1.0) * (kTo - kFrom);
    out += formatted(
               "<line class=\"bound\" x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"19\"/>"
               "<text class=\"bound-text\" x=\"%.1f\" y=\"31\" text-anchor=\"%s\">",
               x, x, x, x < 150 ? "start" : "middle") +
           escaped(name) + "</text>";
  }
  return out + "</svg>\n";
}

}  // namespace

std::string to_html(const HeatMap& map) {
  std::string html =
      formatted("<div class=\"heat panels-%zu\" role=\"img\" aria-label=\"", map.panels.size()) +
      escaped(map.label) + "\">" + names(map, "all names") + "\n";
  for (const HeatPanel& panel : map.panels) html += panel_html(map, panel);
  return html + "</div>\n" + key(map);
}

size_t columns_for(size_t rows, size_t wanted) {
  const size_t room = kMaxCells / std::max<size_t>(1, rows);
  return std::min(wanted, std::clamp(room, kMinColumns, kMaxColumns));
}

}  // namespace moe8
