// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/html.h"

#include <array>

#include "base/plain_text.h"
#include "train/report/page/assets.h"

namespace moe8 {
namespace {

// Okabe and Ito's set.
constexpr std::array<const char*, 6> kColours{"#0072b2", "#d55e00", "#009e73",
                                              "#cc79a7", "#e69f00", "#56b4e9"};

// The browser itself refuses whatever a page might want from outside.
constexpr const char* kPolicy =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

// JSON that may stand in a <script>, whatever its strings hold.
std::string for_script(const std::string& json) {
  std::string text;
  for (const char c : json) text += c == '<' ? std::string("\\u003c") : std::string(1, c);
  return text;
}

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

std::string html_page(const std::string& title, const std::string& body, const std::string& data) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"" +
         escaped(kPolicy) +
         "\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>" +
         escaped(title) + "</title><style>\n" + kPageStyle + "</style></head><body>\n<h1>" +
         escaped(title) + "</h1>\n" + body + "<script type=\"application/json\" id=\"page-data\">" +
         for_script(data) + "</script>\n<script>\n" + kPageScript + "</script>\n</body></html>\n";
}

std::string section(const std::string& title, const std::string& body, const std::string& note) {
  return "<h2>" + escaped(title) + "</h2>\n" + body + "<p class=\"note\">" + note + "</p>\n";
}

std::string html_table(const std::vector<std::string>& head,
                       const std::vector<std::vector<std::string>>& rows) {
  std::vector<bool> shown(head.size(), false);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) shown[i] = shown[i] || !row[i].empty();
  }
  std::string html = "<div class=\"box\"><table class=\"cards-when-narrow\"><thead><tr>";
  for (size_t i = 0; i < head.size(); ++i) {
    if (shown[i]) html += "<th>" + escaped(head[i]) + "</th>";
  }
  html += "</tr></thead><tbody>\n";
  for (const auto& row : rows) {
    html += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      if (shown[i]) html += "<td data-label=\"" + escaped(head[i]) + "\">" + row[i] + "</td>";
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

const char* run_colour(size_t run) {
  return kColours[run % kColours.size()];
}

std::string run_label(size_t run, const std::string& name) {
  return formatted("<span class=\"swatch\" style=\"background:%s\"></span>", run_colour(run)) +
         escaped(name);
}

}  // namespace moe8
