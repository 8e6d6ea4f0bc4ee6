// SPDX-License-Identifier: BSD-3-Clause
// The frame of a self-contained page: no scripts, no network, light and dark by the reader's
// setting, for narrow screens as well. What stands on the page: report.cpp.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

/// printf into a string of at most 511 characters; never for text of others, see escaped().
std::string html_text(const char* format, auto... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, format, values...);
  return buffer;
}

/// Text that stands for itself between tags and in quoted attributes; what XML forbids becomes "?".
std::string escaped(std::string_view plain);

/// The whole document around `body`.
std::string html_page(const std::string& title, const std::string& body);

/// A table of cells that are HTML already; `head` is text. Scrolls sideways where it is too wide.
std::string html_table(const std::vector<std::string>& head,
                       const std::vector<std::vector<std::string>>& rows);

/// Colour of the n-th run: distinct in hue and lightness, visible on light and dark.
const char* run_colour(size_t run);

/// A small square in a run's colour, and its name.
std::string run_label(size_t run, const std::string& name);

}  // namespace moe8
