// SPDX-License-Identifier: BSD-3-Clause
// Curves over steps: as inline SVG for every reader, and as numbers for page/page.js, which draws
// them again so that they answer to a pointer. Knows numbers and names, not runs.
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
  std::string id{};     // of this chart on its page: "loss"
  std::string title{};  // above it
  std::string label{};  // what it shows, for those who cannot see it
  std::string unit{};   // of y
  std::vector<Curve> curves{};
  /// A dashed line across, with its name.
  std::optional<std::pair<double, std::string>> level{};
  double skip = 0;         // part of the x range, from the left, that has no say in the range of y
  bool is_small = false;   // one of several beside each other
  bool is_log = false;     // a logarithmic y axis; all y are positive then
  bool is_signed = false;  // y is a difference: tips show its sign
};

/// <figure> with title and SVG. Curves beyond the range of y are cut off at the edge.
std::string to_figure(const LineChart& chart);

/// The same as a JSON object, for page.js.
std::string to_json(const LineChart& chart);

/// "[1,2.5]": five digits say all that a screen can show.
std::string json_numbers(const std::vector<double>& values);

/// Each value replaced by the mean of it and what lies at most `radius` before or after.
std::vector<double> smoothed(const std::vector<double>& values, size_t radius);

/// Few points that look like many: the least and the greatest of each of `pieces` stretches.
Curve thinned(const Curve& curve, size_t pieces);

}  // namespace moe8
