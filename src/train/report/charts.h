// SPDX-License-Identifier: BSD-3-Clause
// Charts as inline SVG: curves over steps, and maps of coloured cells. They know numbers and names,
// not runs.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moe8 {

/// y over x, rising x. Values that are not finite are left out.
struct Curve {
  size_t run = 0;  // its colour
  std::vector<double> x;
  std::vector<double> y;
  bool is_raw = false;  // thin, behind the others, without a say in the range
};

struct LineChart {
  std::string label;  // what it shows, for those who cannot see it
  std::vector<Curve> curves{};
  /// A dashed line across, with its name.
  std::optional<std::pair<double, std::string>> level{};
  double skip = 0;  // part of the x range, from the left, that has no say in the range of y
};
std::string to_svg(const LineChart& chart);

/// A cell for every row and column; NaN leaves it empty.
struct HeatPanel {
  std::string title;
  std::vector<std::string> columns;  // names, for tooltips and below
  std::vector<std::vector<double>> rows;
};

/// Panels side by side that share rows and colours.
struct HeatMap {
  std::string label;
  std::string unit;  // "dB"
  double low = 0;    // values of the darkest and the lightest colour
  double high = 1;
  std::vector<std::string> rows{};  // names
  std::vector<HeatPanel> panels{};
};
std::string to_svg(const HeatMap& map);

/// Each value replaced by the mean of it and what lies at most `radius` before or after.
std::vector<double> smoothed(const std::vector<double>& values, size_t radius);

/// Few points that look like many: the least and the greatest of each of `pieces` stretches.
Curve thinned(const Curve& curve, size_t pieces);

}  // namespace moe8
