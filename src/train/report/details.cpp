// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/details.h"

#include <set>
#include <utility>

#include "base/plain_text.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;

constexpr size_t kMaxWarnings = 40;  // of a run
constexpr size_t kMaxStarts = 10;    // likewise

std::string warnings_of(const RunRecord& run) {
  std::string html;
  size_t shown = 0;
  for (size_t n = run.numerics.size(); n-- > 0;) {
    for (const std::string& text : run.numerics[n].warnings) {
      if (++shown > kMaxWarnings) return html;
      html += formatted("<li>step %lld: ", static_cast<long long>(run.numerics[n].step)) +
              escaped(text) + "</li>\n";
    }
  }
  return html;
}

std::string origin_row(const std::string& name, const std::string& value) {
  return value.empty() ? "" : "<tr><td>" + name + "</td><td>" + value + "</td></tr>\n";
}

std::string origin_of(const RunStart& start) {
  const std::string device = start.device + (start.device == "CPU" && start.threads > 0
                                                 ? ", " + std::to_string(start.threads) + " threads"
                                                 : "");
  const std::string command =
      start.command.empty() ? "" : "<code>" + escaped(start.command) + "</code>";
  return origin_row("from step", std::to_string(start.step)) +
         origin_row("started", escaped(start.date)) +
         origin_row("program", escaped(start.program)) + origin_row("command", command) +
         origin_row("machine", escaped(start.machine)) + origin_row("device", escaped(device));
}

std::string config_row(const std::string& key, const std::vector<std::string>& values,
                       bool differs) {
  std::string html = differs ? "<tr class=\"differs\"><td>" : "<tr><td>";
  html += escaped(key) + "</td>";
  for (const std::string& value : values) html += "<td>" + escaped(value) + "</td>";
  return html + "</tr>\n";
}

std::string config_table(const Runs& runs, const std::string& rows) {
  std::string head = "<div class=\"box\"><table class=\"text\"><thead><tr><th>key</th>";
  for (const RunRecord& run : runs) head += "<th>" + escaped(run.name) + "</th>";
  return head + "</tr></thead><tbody>\n" + rows + "</tbody></table></div>\n";
}

}  // namespace

std::string warnings_section(const Runs& runs) {
  std::string html;
  for (size_t i = 0; i < runs.size(); ++i) {
    const size_t count = warnings_in(runs[i]);
    if (count == 0) continue;
    html += "<details><summary>" + run_label(i, runs[i].name) + formatted(": %zu", count) +
            "</summary><ul>\n" + warnings_of(runs[i]) + "</ul></details>\n";
  }
  if (html.empty()) return "";
  return section("Warnings", html,
                 formatted("Values that left their bounds, the last first, at most %zu of a run.",
                           kMaxWarnings));
}

std::string origins_section(const Runs& runs) {
  std::string html;
  for (size_t i = 0; i < runs.size(); ++i) {
    html += "<h3>" + run_label(i, runs[i].name) +
            "</h3>\n<div class=\"box\"><table class=\"text\"><tbody>\n" +
            origin_row("folder", "<code>" + escaped(runs[i].folder) + "</code>");
    size_t shown = 0;
    for (const RunStart& start : runs[i].starts) {
      if (++shown <= kMaxStarts) html += origin_of(start);
    }
    html += "</tbody></table></div>\n";
  }
  return "<h2>Where the runs come from</h2>\n" + html;
}

std::string configs_section(const Runs& runs) {
  std::vector<std::vector<std::pair<std::string, std::string>>> settings;
  for (const RunRecord& run : runs) settings.push_back(settings_text(run.config));
  std::string differing, same;
  for (size_t k = 0; k < settings.front().size(); ++k) {
    std::vector<std::string> values;
    values.reserve(settings.size());
    for (const auto& list : settings) values.push_back(list[k].second);
    const bool differs = std::set<std::string>(values.begin(), values.end()).size() > 1;
    (differs ? differing : same) += config_row(settings.front()[k].first, values, differs);
  }
  std::string html;
  if (!differing.empty()) html += config_table(runs, differing);
  html += formatted("<details%s><summary>%s</summary>", runs.size() == 1 ? " open" : "",
                    runs.size() == 1 ? "All keys" : "Keys that are the same in all") +
          config_table(runs, same) + "</details>\n";
  return "<h2>Configs</h2>\n" + html;
}

}  // namespace moe8
