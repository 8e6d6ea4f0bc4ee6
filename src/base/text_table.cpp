// SPDX-License-Identifier: BSD-3-Clause
#include "base/text_table.h"

#include <algorithm>
#include <numeric>

namespace moe8 {
namespace {

using Row = std::vector<std::string>;
using Rows = std::vector<Row>;

constexpr size_t kGap = 2;
constexpr size_t kMinWidth = 12;  // a column is not folded further

bool begins_character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
}

// Where the character that follows the first `count` of them begins.
size_t bytes_of(std::string_view text, size_t count) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (begins_character(text[at]) && count-- == 0) break;
  }
  return at;
}

std::vector<size_t> widths_of(const Rows& rows) {
  std::vector<size_t> widths;
  for (const Row& row : rows) {
    if (row.size() < 2) continue;
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], text_width(row[i]));
  }
  return widths;
}

// The widths with the widest made narrower until a line fits.
std::vector<size_t> fitting(std::vector<size_t> widths, size_t columns) {
  if (widths.empty()) return widths;
  const size_t gaps = kGap * (widths.size() - 1);
  const size_t sum = std::accumulate(widths.begin(), widths.end(), gaps);
  if (sum <= columns) return widths;
  const auto widest = std::ranges::max_element(widths);
  const size_t rest = sum - *widest;
  *widest = std::max(kMinWidth, columns > rest ? columns - rest : 0);
  return widths;
}

std::string line_of(const Row& cells, const std::vector<size_t>& widths) {
  std::string line;
  for (size_t i = 0; i < cells.size(); ++i) {
    line += cells[i];
    if (i + 1 < cells.size()) line.append(widths[i] - text_width(cells[i]) + kGap, ' ');
  }
  while (line.ends_with(' ')) line.pop_back();
  return line;
}

// A row as the lines that it takes.
std::string lines_of(const Row& row, const std::vector<size_t>& widths, const std::string& indent) {
  std::vector<std::vector<std::string>> pieces;
  size_t height = 1;
  for (size_t i = 0; i < row.size(); ++i) {
    pieces.push_back(folded(row[i], widths[i]));
    height = std::max(height, pieces.back().size());
  }
  std::string text;
  for (size_t h = 0; h < height; ++h) {
    Row cells;
    for (const auto& cell : pieces) cells.push_back(h < cell.size() ? cell[h] : "");
    text += indent + line_of(cells, widths) + '\n';
  }
  return text;
}

}  // namespace

size_t text_width(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, begins_character));
}

std::vector<std::string> folded(const std::string& text, size_t width) {
  std::vector<std::string> pieces;
  std::string_view rest = text;
  while (text_width(rest) > width && width > 0) {
    size_t end = bytes_of(rest, width);
    const size_t space = rest.rfind(' ', end);
    if (space != std::string_view::npos && space > 0) end = space;
    pieces.emplace_back(rest.substr(0, end));
    rest.remove_prefix(end + (end == space ? 1 : 0));
  }
  pieces.emplace_back(rest);
  return pieces;
}

std::string text_table(const Rows& rows, const TextTable& style) {
  const size_t indent = text_width(style.indent);
  std::vector<size_t> widths = widths_of(rows);
  if (style.columns > indent) widths = fitting(std::move(widths), style.columns - indent);
  std::string text;
  for (const Row& row : rows) {
    text += row.size() == 1 ? style.indent + row[0] + '\n' : lines_of(row, widths, style.indent);
  }
  return text;
}

}  // namespace moe8
