// SPDX-License-Identifier: BSD-3-Clause
// What stands on report.html. How it looks: html.cpp and charts.cpp.
#include "train/report/report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "base/check.h"
#include "io/file.h"
#include "train/report/charts.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;

constexpr double kSmoothing = 1.0 / 50;  // of a run, to either side
constexpr double kSkip = 0.1;            // of a run: first losses would flatten the rest
constexpr size_t kMostCells = 6000;      // of a heat map panel
constexpr size_t kMostColumns = 60;      // likewise
constexpr size_t kMostWarnings = 40;     // of a run
constexpr double kHighestSqnr = 45;      // dB; above, colours say nothing more

std::string section(const std::string& title, const std::string& body, const std::string& note) {
  return "<h2>" + escaped(title) + "</h2>\n" + body + "<p>" + note + "</p>\n";
}

std::string legend(const Runs& runs) {
  if (runs.size() < 2) return "";
  std::string html = "<p class=\"legend\">";
  for (size_t i = 0; i < runs.size(); ++i) {
    html += "<span class=\"run\">" + run_label(i, runs[i].name) + "</span> ";
  }
  return html + "</p>\n";
}

// ---- the table --------------------------------------------------------------
std::string optional_text(const char* format, const std::optional<double>& value) {
  return value ? html_text(format, *value) : "-";
}

size_t warnings_in(const RunRecord& run) {
  size_t count = 0;
  for (const NumericsLine& line : run.numerics) count += line.warnings.size();
  return count;
}

std::string table(const Report& report) {
  const Runs& runs = report.runs;
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < runs.size(); ++i) {
    const RunRecord& run = runs[i];
    std::optional<double> memory;
    if (run.peak_memory) memory = static_cast<double>(*run.peak_memory) / 1e6;
    const std::string steps =
        html_text("%lld", static_cast<long long>(run.steps.back().step)) +
        (run.finished ? ""
                      : html_text(" of %lld", static_cast<long long>(run.config.training.steps)));
    rows.push_back(
        {run_label(i, run.name), escaped(run.config.training.recipe), steps,
         html_text("%.4f", run.train_loss), optional_text("%.4f", run.validation_loss),
         optional_text("%+.2f %%", difference_percent(run, runs.front())),
         html_text("%.0f (x %.2f)", run.tokens_per_s, run.tokens_per_s / runs.front().tokens_per_s),
         optional_text("%.0f MB", memory),
         run.numerics.empty() ? "-" : std::to_string(warnings_in(run))});
  }
  if (report.bigram_loss) {
    rows.push_back(
        {"byte-bigram table", "", "", "", html_text("%.4f", *report.bigram_loss), "", "", "", ""});
  }
  return html_table({"run", "recipe", "steps", "train loss", "validation loss", "vs first",
                     "tokens/s", "peak memory", "warnings"},
                    rows) +
         "<p>Losses in nats per token. Train loss: mean of the last steps. Peak memory: most "
         "resident memory of the whole process, LibTorch's libraries included; known when a run has ended. "
         "Warnings: values that left their bounds, summed over all looks at the numerics.</p>\n";
}

// ---- curves over steps ------------------------------------------------------
Curve curve_of(const RunRecord& run, size_t index,
               const std::function<double(const StepMetrics&)>& value) {
  Curve curve{.run = index, .x = {}, .y = {}};
  for (const StepMetrics& step : run.steps) {
    curve.x.push_back(static_cast<double>(step.step));
    curve.y.push_back(value(step));
  }
  return curve;
}

Curve smooth(Curve curve) {
  const auto radius = static_cast<size_t>(static_cast<double>(curve.y.size()) * kSmoothing);
  curve.y = smoothed(curve.y, std::max<size_t>(1, radius));
  return curve;
}

double loss_of(const StepMetrics& step) {
  return step.loss;
}

std::string losses(const Report& report) {
  LineChart chart{.label = "Training loss by step, one curve a run", .skip = kSkip};
  if (report.bigram_loss) chart.level = {*report.bigram_loss, "byte-bigram table"};
  for (size_t i = 0; i < report.runs.size(); ++i) {
    Curve raw = curve_of(report.runs[i], i, loss_of);
    chart.curves.push_back(smooth(raw));
    raw.is_raw = true;
    chart.curves.push_back(std::move(raw));
  }
  return section("Training loss", legend(report.runs) + to_svg(chart),
                 "Thick: a moving mean over about a twenty-fifth of the run. Thin: single steps. "
                 "The first tenth may run off the top.");
}

// Losses minus the first run's at the same step, then smoothed: so a run that ends early ends well.
std::string differences(const Runs& runs) {
  if (runs.size() < 2) return "";
  LineChart chart{.label = "Difference of the training loss to the first run, smoothed, by step",
                  .skip = kSkip};
  const Curve first = curve_of(runs.front(), 0, loss_of);
  for (size_t i = 1; i < runs.size(); ++i) {
    Curve curve = curve_of(runs[i], i, loss_of);
    const size_t common = std::min(curve.y.size(), first.y.size());
    curve.x.resize(common);
    curve.y.resize(common);
    for (size_t k = 0; k < common; ++k) curve.y[k] -= first.y[k];
    chart.curves.push_back(smooth(std::move(curve)));
  }
  chart.level = {0, runs.front().name};
  return section(
      "Difference to the first run", legend(runs) + to_svg(chart),
      "Training loss minus that of the first run, smoothed, in nats per token. Runs that "
      "differ in nothing but a rounding drift apart, too.");
}

std::string speeds(const Runs& runs) {
  LineChart chart{.label = "Tokens per second by step, one curve a run", .skip = kSkip};
  for (size_t i = 0; i < runs.size(); ++i) {
    chart.curves.push_back(
        smooth(curve_of(runs[i], i, [](const StepMetrics& step) { return step.tokens_per_s; })));
  }
  return section("Tokens per second", legend(runs) + to_svg(chart),
                 "Smoothed as the losses. Steps at which numerics are looked at take longer.");
}

// ---- SQNR -------------------------------------------------------------------
// Looks of a run, put together so that they fit beside each other.
struct Columns {
  std::vector<std::string> names;
  std::vector<size_t> of_look;
};

Columns columns_of(const std::vector<NumericsLine>& looks, size_t rows) {
  const size_t room = std::clamp<size_t>(kMostCells / std::max<size_t>(1, rows), 10, kMostColumns);
  const size_t count = std::min(room, looks.size());
  Columns columns{.names = std::vector<std::string>(count), .of_look = {}};
  for (size_t i = 0; i < looks.size(); ++i) {
    const size_t column = i * count / looks.size();
    columns.of_look.push_back(column);
    if (columns.names[column].empty()) {
      columns.names[column] = "step " + std::to_string(looks[i].step);
    }
  }
  return columns;
}

std::vector<std::string> weights_of(const std::vector<NumericsLine>& looks) {
  std::vector<std::string> names;
  for (const NumericsLine::Product& product : looks.front().products) {
    if (names.empty() || names.back() != product.weight) names.push_back(product.weight);
  }
  return names;
}

HeatPanel sqnr_panel(const std::vector<NumericsLine>& looks,
                     const std::vector<std::string>& weights, const std::string& product) {
  const Columns columns = columns_of(looks, weights.size());
  std::map<std::string, size_t> row_of;
  for (size_t r = 0; r < weights.size(); ++r) row_of[weights[r]] = r;
  HeatPanel panel{.title = product, .columns = columns.names, .rows = {}};
  panel.rows.assign(weights.size(), std::vector<double>(columns.names.size(), NAN));
  for (size_t i = 0; i < looks.size(); ++i) {
    for (const NumericsLine::Product& p : looks[i].products) {
      const auto row = row_of.find(p.weight);
      if (p.product != product || row == row_of.end()) continue;
      double& cell = panel.rows[row->second][columns.of_look[i]];
      cell = std::isnan(cell) ? p.sqnr_db : std::min(cell, p.sqnr_db);  // the worst of a column
    }
  }
  return panel;
}

double lowest_sqnr(const Runs& runs) {
  double lowest = kHighestSqnr - 1;
  for (const RunRecord& run : runs) {
    for (const NumericsLine& look : run.numerics) {
      for (const NumericsLine::Product& p : look.products) lowest = std::min(lowest, p.sqnr_db);
    }
  }
  return std::floor(std::max(0.0, lowest));
}

std::string sqnr_map(const RunRecord& run, double lowest) {
  HeatMap map{.label = "SQNR of every product of " + run.name + " by weight and step",
              .unit = "dB",
              .low = lowest,
              .high = kHighestSqnr,
              .rows = weights_of(run.numerics)};
  for (const char* product : {"out", "grad_input", "grad_weight"}) {
    map.panels.push_back(sqnr_panel(run.numerics, map.rows, product));
  }
  return "<div class=\"box\">" + to_svg(map) + "</div>\n";
}

std::string sqnr(const Runs& runs) {
  std::string maps;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].numerics.empty() || runs[i].numerics.front().products.empty()) continue;
    maps += "<h3>" + run_label(i, runs[i].name) + "</h3>\n" + sqnr_map(runs[i], lowest_sqnr(runs));
  }
  if (maps.empty()) return "";
  return section(
      "Error of the products", maps,
      "SQNR in dB of sampled results of the three products of every converted weight "
      "against high precision; 6 dB less is twice the error. Where looks share a column, "
      "the worst counts.");
}

// ---- experts ----------------------------------------------------------------
double busiest(const NumericsLine& look) {
  double most = 0;
  for (const ExpertTokens& experts : look.experts) most = std::max(most, experts.max_over_mean());
  return most;
}

std::string experts_map(const RunRecord& run) {
  const NumericsLine& last = run.numerics.back();
  HeatMap map{.label = "Tokens of every expert at the last look at " + run.name,
              .unit = "x mean",
              .low = 0,
              .high = 2};
  HeatPanel panel{.title = "step " + std::to_string(last.step), .columns = {}, .rows = {}};
  size_t most = 0;
  for (const ExpertTokens& experts : last.experts) {
    map.rows.push_back(experts.fqn);
    std::vector<double> row;
    for (const int64_t tokens : experts.tokens) {
      row.push_back(experts.mean() > 0 ? static_cast<double>(tokens) / experts.mean() : NAN);
    }
    most = std::max(most, row.size());
    panel.rows.push_back(std::move(row));
  }
  for (size_t e = 0; e < most; ++e) panel.columns.push_back("expert " + std::to_string(e));
  map.panels.push_back(std::move(panel));
  return "<div class=\"box\">" + to_svg(map) + "</div>\n";
}

std::string experts(const Runs& runs) {
  LineChart chart{.label = "Load of the busiest expert of any layer, by step"};
  std::string maps;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].numerics.empty() || runs[i].numerics.back().experts.empty()) continue;
    Curve curve{.run = i, .x = {}, .y = {}};
    for (const NumericsLine& look : runs[i].numerics) {
      curve.x.push_back(static_cast<double>(look.step));
      curve.y.push_back(busiest(look));
    }
    chart.curves.push_back(std::move(curve));
    maps += "<h3>" + run_label(i, runs[i].name) + "</h3>\n" + experts_map(runs[i]);
  }
  if (chart.curves.empty()) return "";
  chart.level = {1, "perfect balance"};
  return section("Balance of the experts", legend(runs) + to_svg(chart) + maps,
                 "The curve: tokens of the busiest expert of any layer, relative to the mean. The "
                 "maps: every expert's tokens at the last look.");
}

// ---- warnings ---------------------------------------------------------------
std::string warnings(const Runs& runs) {
  std::string html;
  for (size_t i = 0; i < runs.size(); ++i) {
    const size_t count = warnings_in(runs[i]);
    if (count == 0) continue;
    html += "<details><summary>" + run_label(i, runs[i].name) + html_text(": %zu", count) +
            "</summary><ul>\n";
    size_t shown = 0;
    for (size_t n = runs[i].numerics.size(); n-- > 0;) {
      const auto& look = runs[i].numerics[n];
      for (const std::string& text : look.warnings) {
        if (++shown > kMostWarnings) break;
        html += html_text("<li>step %lld: ", static_cast<long long>(look.step)) + escaped(text) +
                "</li>\n";
      }
    }
    html += "</ul></details>\n";
  }
  if (html.empty()) return "";
  return section("Warnings", html,
                 html_text("Values that left their bounds, the last first, at most %zu a run.",
                           kMostWarnings));
}

// ---- configs ----------------------------------------------------------------
std::string config_row(const std::string& key, const std::vector<std::string>& values,
                       bool differs) {
  std::string html = differs ? "<tr class=\"differs\"><td>" : "<tr><td>";
  html += escaped(key) + "</td>";
  for (const std::string& value : values) html += "<td>" + escaped(value) + "</td>";
  return html + "</tr>\n";
}

std::string config_table(const Runs& runs, const std::string& rows) {
  std::string head = "<div class=\"box\"><table><thead><tr><th>key</th>";
  for (const RunRecord& run : runs) head += "<th>" + escaped(run.name) + "</th>";
  return head + "</tr></thead><tbody>\n" + rows + "</tbody></table></div>\n";
}

std::string configs(const Runs& runs) {
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
  html += html_text("<details%s><summary>%s</summary>", runs.size() == 1 ? " open" : "",
                    runs.size() == 1 ? "All keys" : "Keys that are the same in all") +
          config_table(runs, same) + "</details>\n";
  return "<h2>Configs</h2>\n" + html;
}

}  // namespace

std::string report_html(const Report& report) {
  MOE8_CHECK(!report.runs.empty(), "report", "runs", "expected at least one, got none");
  const Runs& runs = report.runs;
  return html_page(report.title, "<p>" + escaped(report.introduction) + "</p>\n" + table(report) +
                                     losses(report) + differences(runs) + speeds(runs) +
                                     sqnr(runs) + experts(runs) + warnings(runs) + configs(runs));
}

void write_report(const Report& report, const std::string& path) {
  const std::string html = report_html(report);
  AtomicFile file("report", path);
  file.write(html.data(), html.size());
  file.commit();
}

}  // namespace moe8
