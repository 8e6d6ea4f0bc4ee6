// SPDX-License-Identifier: BSD-3-Clause
// Maps of coloured cells: rows with names, columns, and a key that says what the colours mean.
#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace moe8 {

/// A cell for every row and column; NaN leaves it empty.
struct HeatPanel {
  std::string title{};
  std::vector<std::string> columns{};  // names, for tips and below
  std::vector<std::vector<double>> rows{};
  std::vector<std::vector<std::string>> notes{};  // more for the tips of cells; may be empty
};

/// Panels that share rows and colours: side by side, on a narrow screen one below the other.
struct HeatMap {
  std::string label{};
  std::string unit{};  // "dB"
  double low = 0;      // values of the darkest and the lightest colour
  double high = 1;
  std::vector<std::string> rows{};  // names
  std::vector<HeatPanel> panels{};
  /// Values outside are outlined.
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  /// Marks on the key: a value and its name.
  std::vector<std::pair<double, std::string>> marks{};
};
std::string to_html(const HeatMap& map);

/// How many columns a map may have so that a page stays small, of the `wanted` ones.
size_t columns_for(size_t rows, size_t wanted);

}  // namespace moe8
