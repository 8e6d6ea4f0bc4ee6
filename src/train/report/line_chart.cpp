// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/line_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/plain_text.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

constexpr size_t kDrawnPieces = 600;                                // of a curve in the SVG
constexpr size_t kZoomPieces = 1500;                                // for page.js, which zooms in
constexpr size_t kMaxMarkedPoints = 40;                             // are marked one by one
constexpr double kLeft = 62, kRight = 14, kTop = 10, kBottom = 34;  // in SVG units

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

// Where numbers lie in the picture. On a logarithmic axis y is a range of logarithms.
struct Axes {
  Range x, y;
  bool is_log;
  double width, height;

  double right() const { return width - kRight; }
  double bottom() const { return height - kBottom; }
  double scaled(double value) const { return is_log ? std::log10(value) : value; }
  double px(double value) const {
    return kLeft + (value - x.low) / (x.high - x.low) * (right() - kLeft);
  }
  // Not cut to the frame, which clips; but no further away than is worth a number.
  double py(double value) const {
    const double part = (scaled(value) - y.low) / (y.high - y.low);
    return bottom() - std::clamp(part, -4.0, 5.0) * (bottom() - kTop);
  }
};

Axes axes_of(const LineChart& chart) {
  Axes axes{.x = {},
            .y = {},
            .is_log = chart.is_log,
            .width = chart.is_small ? 520.0 : 1040.0,
            .height = chart.is_small ? 240.0 : 400.0};
  for (const Curve& curve : chart.curves) {
    for (const double value : curve.x) axes.x.include(value);
  }
  if (axes.x.empty()) axes.x = {0, 1};
  if (axes.x.low == axes.x.high) axes.x.high = axes.x.low + 1;
  const double from = axes.x.low + chart.skip * (axes.x.high - axes.x.low);
  for (const Curve& curve : chart.curves) {
    for (size_t i = 0; i < curve.y.size() && !curve.is_raw; ++i) {
      if (curve.x[i] >= from) axes.y.include(axes.scaled(curve.y[i]));
    }
  }
  if (chart.level) axes.y.include(axes.scaled(chart.level->first));
  axes.y = axes.y.widened();
  return axes;
}

// ---- ticks ------------------------------------------------------------------
struct Tick {
  double value;
  std::string text;
};

// 1, 2 or 5 times a power of ten: the distance of about `count` ticks.
double tick_distance(double range, int count) {
  const double rough = range / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power * 1.0001) return factor * power;
  }
  return 10 * power;
}

// The multiples of a round distance within a range, with as many digits as that asks for.
std::vector<Tick> ticks(const Range& range, int count, double least_distance = 0) {
  const double distance = std::max(least_distance, tick_distance(range.high - range.low, count));
  const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(distance) - 1e-9)), 0, 6);
  const auto first = static_cast<int64_t>(std::ceil(range.low / distance));
  const auto last = static_cast<int64_t>(std::floor(range.high / distance));
  std::vector<Tick> list;
  for (int64_t i = first; i <= last; ++i) {
    const double value = static_cast<double>(i) * distance;
    const bool plain = std::abs(value) < 1e6 && digits < 5;
    list.push_back({value, plain ? formatted("%.*f", digits, value) : formatted("%.3g", value)});
  }
  return list;
}

// 1, 2 and 5 times the powers of ten; `range` is one of logarithms.
std::vector<Tick> log_ticks(const Range& range) {
  std::vector<Tick> list;
  for (auto exponent = static_cast<int>(std::floor(range.low)); exponent <= range.high;
       ++exponent) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double value = factor * std::pow(10, exponent);
      const double at = std::log10(value);
      if (at >= range.low && at <= range.high) list.push_back({value, formatted("%.3g", value)});
    }
  }
  return list;
}

// ---- SVG --------------------------------------------------------------------
std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  return formatted("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor) +
         escaped(text) + "</text>\n";
}

std::string line_across(const Axes& axes, const char* kind, double y) {
  return formatted("<line class=\"%s\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", kind,
                   kLeft, axes.right(), y, y);
}

std::string grid(const Axes& axes) {
  std::string out;
  for (const Tick& tick : axes.is_log ? log_ticks(axes.y) : ticks(axes.y, 5)) {
    const double y = axes.py(tick.value);
    out += line_across(axes, "rule", y) + text_at(kLeft - 8, y + 4, "end", tick.text);
  }
  constexpr double kHalfOfALabel = 26;
  for (const Tick& tick : ticks(axes.x, axes.width > 600 ? 6 : 4, 1)) {
    const double x = axes.px(tick.value);
    const bool at_the_edge = x > axes.right() - kHalfOfALabel;  // or it would be cut off
    out += text_at(at_the_edge ? axes.right() : x, axes.bottom() + 16,
                   at_the_edge ? "end" : "middle", tick.text);
  }
  return out + text_at(axes.right(), axes.height - 3, "end", "step");
}

std::string polyline(const Curve& curve, const Axes& axes) {
  std::string points, marks;
  for (size_t i = 0; i < curve.y.size(); ++i) {
    const double x = axes.px(curve.x[i]), y = axes.py(curve.y[i]);
    if (!std::isfinite(y)) continue;
    points += formatted("%.1f,%.1f ", x, y);
    if (curve.is_raw || curve.y.size() > kMaxMarkedPoints) continue;
    marks += formatted("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"/>", x, y,
                       run_colour(curve.run));
  }
  return formatted("<polyline class=\"%s\" stroke=\"%s\" points=\"", curve.is_raw ? "raw" : "curve",
                   run_colour(curve.run)) +
         points + "\"/>" + marks + "\n";
}

// An inner picture in the same units, whose edge cuts off what lies beyond.
std::string frame(const Axes& axes, const std::string& content) {
  const double width = axes.right() - kLeft, height = axes.bottom() - kTop;
  return formatted(
             "<svg x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" "
             "viewBox=\"%.0f %.0f %.0f %.0f\">\n",
             kLeft, kTop, width, height, kLeft, kTop, width, height) +
         content + "</svg>\n";
}

std::string level_line(const LineChart& chart, const Axes& axes) {
  if (!chart.level) return "";
  const double y = axes.py(chart.level->first);
  return line_across(axes, "level", y) + text_at(axes.right(), y - 6, "end", chart.level->second);
}

Curve finite(const Curve& curve) {
  Curve clean{.run = curve.run, .x = {}, .y = {}, .is_raw = curve.is_raw};
  for (size_t i = 0; i < curve.y.size(); ++i) {
    if (!std::isfinite(curve.y[i])) continue;
    clean.x.push_back(curve.x[i]);
    clean.y.push_back(curve.y[i]);
  }
  return clean;
}

}  // namespace

std::string to_figure(const LineChart& chart) {
  const Axes axes = axes_of(chart);
  std::string curves;
  for (const bool raw : {true, false}) {
    for (const Curve& curve : chart.curves) {
      if (curve.is_raw == raw) curves += polyline(thinned(finite(curve), kDrawnPieces), axes);
    }
  }
  return "<figure data-chart=\"" + escaped(chart.id) + "\"><figcaption>" + escaped(chart.title) +
         "</figcaption>" +
         formatted("<svg class=\"chart\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"",
                   axes.width, axes.height) +
         escaped(chart.label) + "\">\n" + grid(axes) + level_line(chart, axes) +
         frame(axes, curves) + "</svg></figure>\n";
}

std::string json_numbers(const std::vector<double>& values) {
  std::string text;
  for (const double value : values) text += (text.empty() ? "" : ",") + formatted("%.5g", value);
  return "[" + text + "]";
}

std::string to_json(const LineChart& chart) {
  std::string curves;
  for (const Curve& curve : chart.curves) {
    const Curve thin = thinned(finite(curve), kZoomPieces);
    curves +=
        (curves.empty() ? "" : ",") +
        formatted("{\"run\":%zu,\"raw\":%s,\"x\":", curve.run, curve.is_raw ? "true" : "false") +
        json_numbers(thin.x) + ",\"y\":" + json_numbers(thin.y) + "}";
  }
  const nlohmann::json level =
      chart.level ? nlohmann::json{chart.level->first, chart.level->second} : nlohmann::json();
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  return "{\"unit\":" + nlohmann::json(chart.unit).dump() + ",\"level\":" + level.dump() +
         formatted(",\"skip\":%.3g,\"small\":%s,\"log\":%s,\"signed\":%s,\"curves\":[", chart.skip,
                   flag(chart.is_small), flag(chart.is_log), flag(chart.is_signed)) +
         curves + "]}";
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
