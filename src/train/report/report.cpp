// SPDX-License-Identifier: BSD-3-Clause
// The order of the parts of report.html. Each part lives in a file of its own beside this one; how
// the page looks and answers: page/page.css and page/page.js.
#include "train/report/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "io/file.h"
#include "train/report/curves.h"
#include "train/report/details.h"
#include "train/report/expert_maps.h"
#include "train/report/html.h"
#include "train/report/line_chart.h"
#include "train/report/rank_tables.h"
#include "train/report/sqnr_maps.h"
#include "train/report/summary.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;

std::string legend(const Runs& runs) {
  if (runs.size() < 2) return "";
  std::string html = "<p class=\"legend\">";
  for (size_t i = 0; i < runs.size(); ++i) {
    html += "<span class=\"run\">" + run_label(i, runs[i].name) + "</span> ";
  }
  return html + "</p>\n";
}

std::string curves(const Runs& runs, const std::vector<LineChart>& charts) {
  std::string large, small;
  for (const LineChart& chart : charts) (chart.is_small ? small : large) += to_figure(chart);
  return section("Training", legend(runs) + large + "<div class=\"grid\">\n" + small + "</div>\n",
                 "Thick: a moving mean over about a twenty-fifth of the run. Thin: single steps. "
                 "The first tenth of a loss may run off the top.");
}

// ---- numbers for the script -------------------------------------------------
// [[steps], [seconds of training]]: enough points to tell the time of any step.
std::string times_of(const RunRecord& run) {
  constexpr size_t kPoints = 400;
  const TrainingConfig& t = run.config.training;
  const auto tokens = static_cast<double>(t.accumulation * t.batch_size * t.seq_len);
  const size_t every = std::max<size_t>(1, run.steps.size() / kPoints);
  std::vector<double> steps, seconds;
  double sum = 0;
  for (size_t i = 0; i < run.steps.size(); ++i) {
    if (run.steps[i].tokens_per_s > 0) sum += tokens / run.steps[i].tokens_per_s;
    if (i % every != 0 && i + 1 != run.steps.size()) continue;
    steps.push_back(static_cast<double>(run.steps[i].step));
    seconds.push_back(sum);
  }
  return "[" + json_numbers(steps) + "," + json_numbers(seconds) + "]";
}

std::string run_json(const RunRecord& run, size_t index) {
  const TrainingConfig& t = run.config.training;
  const auto text = [](const std::string& value) {
    return nlohmann::json(value).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  };
  return "{\"name\":" + text(run.name) + ",\"colour\":" + text(run_colour(index)) +
         ",\"tokens\":" + std::to_string(t.accumulation * t.batch_size * t.seq_len) +
         ",\"time\":" + times_of(run) + "}";
}

std::string page_data(const Runs& runs, const std::vector<LineChart>& charts) {
  std::string run_list, chart_list;
  for (size_t i = 0; i < runs.size(); ++i) {
    run_list += (run_list.empty() ? "" : ",\n") + run_json(runs[i], i);
  }
  for (const LineChart& chart : charts) {
    chart_list += (chart_list.empty() ? "\"" : ",\n\"") + chart.id + "\":" + to_json(chart);
  }
  return "{\"runs\":[" + run_list + "],\n\"charts\":{" + chart_list + "}}";
}

}  // namespace

std::string report_html(const Report& report) {
  MOE8_CHECK(!report.runs.empty(), "report", "runs", "expected at least one, got none");
  const Runs& runs = report.runs;
  const std::vector<LineChart> charts = curves_of(report);
  return html_page(report.title,
                   summary(report) + kControls + curves(runs, charts) + expert_maps(runs) +
                       sqnr_maps(runs) + ranks_section(runs) + warnings_section(runs) +
                       origins_section(runs) + configs_section(runs),
                   page_data(runs, charts));
}

void write_report(const Report& report, const std::string& path) {
  const std::string html = report_html(report);
  AtomicFile file("report", path);
  file.write(html.data(), html.size());
  file.commit();
}

}  // namespace moe8
