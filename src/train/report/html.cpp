// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/html.h"

#include <array>

namespace moe8 {
namespace {

// Okabe and Ito's set.
constexpr std::array<const char*, 6> kColours{"#0072b2", "#d55e00", "#009e73",
                                              "#cc79a7", "#e69f00", "#56b4e9"};

// On a narrow screen charts shrink: their text grows in turn; wide things scroll in their own box.
constexpr const char* kStyle = R"css(
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6670; --line: #d5dbe1; --paper: #ffffff;
        --mark: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #3a424a; --paper: #15181b; --mark: #3d3420; }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.box { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
tr.differs { background: var(--mark); }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
svg.heat { min-width: 44rem; }
.grid { stroke: var(--line); stroke-width: 1; } .raw { opacity: .2; fill: none; stroke-width: 1; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.level { stroke: var(--soft); stroke-dasharray: 6 4; fill: none; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .5rem; }
.legend span.run { margin-right: 1.2rem; }
pre { overflow: auto; border: 1px solid var(--line); border-radius: 6px; padding: .8rem; font-size: 13px; }
p, li { color: var(--soft); }
summary { cursor: pointer; margin-top: .8rem; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; font-size: 15px; }
  svg.chart text { font-size: 23px; }
  th, td { padding: .3rem .4rem; }
}
)css";

}  // namespace

std::string escaped(std::string_view plain) {
  std::string out;
  for (const char c : plain) {
    const bool control = static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t';
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      out += control ? '?' : c;
    }
  }
  return out;
}

std::string html_page(const std::string& title, const std::string& body) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>" +
         escaped(title) + "</title><style>" + kStyle + "</style></head><body>\n<h1>" +
         escaped(title) + "</h1>\n" + body + "</body></html>\n";
}

std::string html_table(const std::vector<std::string>& head,
                       const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<div class=\"box\"><table><thead><tr>";
  for (const std::string& cell : head) html += "<th>" + escaped(cell) + "</th>";
  html += "</tr></thead><tbody>\n";
  for (const auto& row : rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + cell + "</td>";
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

const char* run_colour(size_t run) {
  return kColours[run % kColours.size()];
}

std::string run_label(size_t run, const std::string& name) {
  return html_text("<span class=\"swatch\" style=\"background:%s\"></span>", run_colour(run)) +
         escaped(name);
}

}  // namespace moe8
