// SPDX-License-Identifier: BSD-3-Clause
// The frame of a self-contained page: one file, nothing from outside, light and dark by the
// reader's setting, narrow screens as well; readable without its script. What stands on it:
// report.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

/// Text that stands for itself between tags and in quoted attributes; what XML forbids becomes "?".
std::string escaped(std::string_view plain);

/// Where page.js puts its buttons.
inline constexpr const char* kControls = "<div id=\"controls\" hidden></div>\n";

/// The whole document around `body`, with page.css, page.js and the JSON that it draws.
std::string html_page(const std::string& title, const std::string& body, const std::string& data);

/// A part of the page with its title and, below, what to know about it (HTML).
std::string section(const std::string& title, const std::string& body, const std::string& note);

/// A table of cells that are HTML already; `head` is text. Columns without a value are left out. On
/// a narrow screen every row is a card.
std::string html_table(const std::vector<std::string>& head,
                       const std::vector<std::vector<std::string>>& rows);

/// Colour of the n-th run: distinct in hue and lightness, visible on light and dark.
const char* run_colour(size_t run);

/// A small square in a run's colour, and its name.
std::string run_label(size_t run, const std::string& name);

}  // namespace moe8
