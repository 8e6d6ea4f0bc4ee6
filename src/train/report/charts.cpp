// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/charts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "train/report/html.h"

namespace moe8 {
namespace {

constexpr double kWidth = 860, kHeight = 400;  // of a line chart, in SVG units
constexpr double kLeft = 92, kRight = 16, kTop = 16, kBottom = 52;
constexpr int kTicks = 5;
constexpr size_t kPieces = 600;  // of a curve

constexpr double kRowNames = 250, kGap = 12, kRowHeight = 14, kHead = 22, kFoot = 44;  // heat map
constexpr int kFewColumns = 4;  // with no more, a cell is not stretched
constexpr double kWidestCell = 60;

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
  return html_text("#%02x%02x%02x", mix(kScale[i].r, kScale[i + 1].r),
                   mix(kScale[i].g, kScale[i + 1].g), mix(kScale[i].b, kScale[i + 1].b));
}

// ---- axes -------------------------------------------------------------------
// 1, 2 or 5 times a power of ten: the distance of about kTicks ticks.
double tick_distance(double range) {
  const double rough = range / kTicks;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power * 1.0001) return factor * power;
  }
  return 10 * power;
}

// A number with as many digits as the ticks' distance asks for.
std::string tick_text(double value, double distance) {
  if (std::abs(value) >= 1e6) return html_text("%.3g", value);
  const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(distance) - 1e-9)), 0, 6);
  return html_text("%.*f", digits, value == 0 ? 0.0 : value);
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
  // With room, so that no curve runs along the edge.
  Range widened() const {
    if (empty()) return {0, 1};
    const double room = high > low ? 0.04 * (high - low) : std::max(1e-6, 0.05 * std::abs(high));
    return {low - room, high + room};
  }
};

struct Axes {
  Range x, y;

  double px(double value) const {
    return kLeft + (value - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  }
  double py(double value) const {
    const double part = (std::clamp(value, y.low, y.high) - y.low) / (y.high - y.low);
    return kHeight - kBottom - part * (kHeight - kTop - kBottom);
  }
};

Axes axes_of(const LineChart& chart) {
  Range x, y;
  for (const Curve& curve : chart.curves) {
    for (const double value : curve.x) x.include(value);
  }
  if (x.empty()) x = {0, 1};
  if (x.low == x.high) x.high = x.low + 1;
  const double from = x.low + chart.skip * (x.high - x.low);
  for (const Curve& curve : chart.curves) {
    for (size_t i = 0; i < curve.y.size() && !curve.is_raw; ++i) {
      if (curve.x[i] >= from) y.include(curve.y[i]);
    }
  }
  if (chart.level) y.include(chart.level->first);
  return {x, y.widened()};
}

// The multiples of `distance` within a range.
std::vector<double> ticks(const Range& range, double distance) {
  const auto first = static_cast<int64_t>(std::ceil(range.low / distance));
  const auto last = static_cast<int64_t>(std::floor(range.high / distance));
  std::vector<double> values;
  for (int64_t i = first; i <= last; ++i) values.push_back(static_cast<double>(i) * distance);
  return values;
}

std::string grid(const Axes& axes) {
  std::string out;
  const double dy = tick_distance(axes.y.high - axes.y.low);
  for (const double v : ticks(axes.y, dy)) {
    out += html_text("<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                     kLeft, kWidth - kRight, axes.py(v), axes.py(v));
    out +=
        html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", kLeft - 8, axes.py(v) + 4) +
        tick_text(v, dy) + "</text>\n";
  }
  const double dx = std::max(1.0, tick_distance(axes.x.high - axes.x.low));
  for (const double v : ticks(axes.x, dx)) {
    out += html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", axes.px(v),
                     kHeight - kBottom + 22) +
           tick_text(v, dx) + "</text>\n";
  }
  return out + html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">step</text>\n",
                         kWidth - kRight, kHeight - 6);
}

std::string polyline(const Curve& curve, const Axes& axes) {
  std::string points;
  for (size_t i = 0; i < curve.y.size(); ++i) {
    if (!std::isfinite(curve.y[i])) continue;
    points += html_text("%.1f,%.1f ", axes.px(curve.x[i]), axes.py(curve.y[i]));
  }
  return html_text("<polyline class=\"%s\" stroke=\"%s\" points=\"", curve.is_raw ? "raw" : "curve",
                   run_colour(curve.run)) +
         points + "\"/>\n";
}

std::string svg_open(const char* kind, double width, double height, const std::string& label) {
  return html_text("<svg class=\"%s\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", kind,
                   width, height) +
         escaped(label) + "\">\n";
}

// ---- heat maps --------------------------------------------------------------
double part_of(const HeatMap& map, double value) {
  return map.high > map.low ? (value - map.low) / (map.high - map.low) : 1;
}

std::string value_text(double value, const std::string& unit) {
  return std::isinf(value) ? "exact" : html_text("%.3g ", value) + unit;
}

std::string cells(const HeatMap& map, const HeatPanel& panel, double left, double width) {
  std::string out;
  const double cell = width / static_cast<double>(std::max<size_t>(1, panel.columns.size()));
  for (size_t r = 0; r < panel.rows.size(); ++r) {
    for (size_t c = 0; c < panel.rows[r].size(); ++c) {
      const double value = panel.rows[r][c];
      if (std::isnan(value)) continue;
      out += html_text("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\">",
                       left + static_cast<double>(c) * cell,
                       kHead + static_cast<double>(r) * kRowHeight, cell + 0.2, kRowHeight - 1,
                       scale_colour(part_of(map, value)).c_str());
      out += "<title>" + escaped(map.rows[r] + ", " + panel.columns[c] + ": ") +
             escaped(value_text(value, map.unit)) + "</title></rect>\n";
    }
  }
  return out;
}

std::string panel_names(const HeatPanel& panel, double left, double width, double bottom) {
  std::string out =
      html_text("<text x=\"%.1f\" y=\"14\">", left) + escaped(panel.title) + "</text>";
  if (panel.columns.empty()) return out;
  out += html_text("<text x=\"%.1f\" y=\"%.1f\">", left, bottom + 14) +
         escaped(panel.columns.front()) + "</text>";
  if (panel.columns.size() > 1) {
    out +=
        html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", left + width, bottom + 14) +
        escaped(panel.columns.back()) + "</text>";
  }
  return out + "\n";
}

// The colours from low to high, with numbers at the ends.
std::string colour_key(const HeatMap& map, double y) {
  constexpr int kSteps = 24;
  constexpr double kKeyWidth = 160;
  std::string out = html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.3g</text>",
                              kWidth - kKeyWidth - 76, y + 10, map.low);
  for (int i = 0; i < kSteps; ++i) {
    out += html_text("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"10\" fill=\"%s\"/>",
                     kWidth - kKeyWidth - 70 + i * kKeyWidth / kSteps, y, kKeyWidth / kSteps + 0.2,
                     scale_colour((i + 0.5) / kSteps).c_str());
  }
  return out + html_text("<text x=\"%.1f\" y=\"%.1f\">%.3g ", kWidth - 64, y + 10, map.high) +
         escaped(map.unit) + "</text>\n";
}

}  // namespace

std::string to_svg(const LineChart& chart) {
  const Axes axes = axes_of(chart);
  std::string svg = svg_open("chart", kWidth, kHeight, chart.label) + grid(axes);
  if (chart.level) {
    const double y = axes.py(chart.level->first);
    svg += html_text("<line class=\"level\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                     kLeft, kWidth - kRight, y, y);
    svg += html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", kWidth - kRight, y - 6) +
           escaped(chart.level->second) + "</text>\n";
  }
  for (const bool raw : {true, false}) {
    for (const Curve& curve : chart.curves) {
      if (curve.is_raw == raw) svg += polyline(thinned(curve, kPieces), axes);
    }
  }
  return svg + "</svg>\n";
}

std::string to_svg(const HeatMap& map) {
  const double bottom = kHead + static_cast<double>(map.rows.size()) * kRowHeight;
  const auto panels = static_cast<double>(std::max<size_t>(1, map.panels.size()));
  const double room = (kWidth - kRowNames - kGap * (panels - 1)) / panels;
  std::string svg = svg_open("heat", kWidth, bottom + kFoot, map.label);
  for (size_t r = 0; r < map.rows.size(); ++r) {
    svg += html_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", kRowNames - 8,
                     kHead + static_cast<double>(r) * kRowHeight + 11) +
           escaped(map.rows[r]) + "</text>\n";
  }
  double left = kRowNames;
  for (const HeatPanel& panel : map.panels) {
    const auto columns = static_cast<double>(panel.columns.size());
    const double width = columns <= kFewColumns ? std::min(room, columns * kWidestCell) : room;
    svg += panel_names(panel, left, width, bottom) + cells(map, panel, left, width);
    left += room + kGap;
  }
  return svg + colour_key(map, bottom + 26) + "</svg>\n";
}

std::vector<double> smoothed(const std::vector<double>& values, size_t radius) {
  std::vector<double> sums{0};
  for (const double value : values) sums.push_back(sums.back() + value);
  std::vector<double> result;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t begin = i > radius ? i - radius : 0, end = std::min(values.size(), i + radius + 1);
    result.push_back((sums[end] - sums[begin]) / static_cast<double>(end - begin));
  }
  return result;
}

Curve thinned(const Curve& curve, size_t pieces) {
  const size_t n = curve.y.size();
  if (n <= 2 * pieces) return curve;
  Curve thin{.run = curve.run, .x = {}, .y = {}, .is_raw = curve.is_raw};
  for (size_t piece = 0; piece < pieces; ++piece) {
    const auto begin = curve.y.begin() + static_cast<std::ptrdiff_t>(n * piece / pieces);
    const auto end = curve.y.begin() + static_cast<std::ptrdiff_t>(n * (piece + 1) / pieces);
    const auto [least, most] = std::minmax_element(begin, end);
    for (const auto& at : {std::min(least, most), std::max(least, most)}) {
      thin.x.push_back(curve.x[static_cast<size_t>(at - curve.y.begin())]);
      thin.y.push_back(*at);
    }
  }
  return thin;
}

}  // namespace moe8
