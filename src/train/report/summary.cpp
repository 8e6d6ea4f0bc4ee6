// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/summary.h"

#include "base/nearest.h"
#include "base/plain_text.h"
#include "train/report/flops.h"
#include "train/report/html.h"
#include "train/report/run_tables.h"
#include "train/report/verdict.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;

std::string optional_text(const char* format, const std::optional<double>& value) {
  return value ? formatted(format, *value) : "";
}

std::string device_of(const RunRecord& run) {
  return run.starts.empty() ? "" : run.starts.back().device;
}

double flops_per_s(const RunRecord& run) {
  return run.speed.wall.median * model_flops(run.config.model, run.config.training.seq_len);
}

// Empty where the device is none of the table's.
std::string utilization(const RunRecord& run) {
  const auto peak = bf16_peak(device_of(run));
  return peak ? formatted("%.1f %%", 100 * flops_per_s(run) / *peak) : "";
}

std::string flops_text(double flops) {
  return flops >= 1e12 ? formatted("%.1f TFLOP/s", flops / 1e12)
                       : formatted("%.1f GFLOP/s", flops / 1e9);
}

std::string memory_text(const RunRecord& run) {
  if (!run.peak_memory) return "";
  const auto bytes = static_cast<double>(*run.peak_memory);
  return bytes >= 10e9 ? formatted("%.1f GB", bytes / 1e9) : formatted("%.0f MB", bytes / 1e6);
}

std::string warnings_text(const RunRecord& run) {
  return run.numerics.empty() ? "" : std::to_string(warnings_in(run));
}

// ---- cards ------------------------------------------------------------------
std::string entry(const std::string& name, const std::string& value) {
  if (value.empty()) return "";
  return "<dt>" + name + "</dt><dd>" + value + "</dd>";
}

std::string card(const RunRecord& run, size_t index, const RunRecord& first) {
  const bool is_first = index == 0;
  const double loss = run.validation_loss.value_or(run.train_loss);
  std::string below = run.validation_loss ? "validation loss" : "training loss";
  const auto difference = difference_percent(run, first);
  if (!is_first && difference) {
    below += formatted(", %+.2f %% against ", *difference) + escaped(first.name);
  }
  std::string speed = formatted("%.0f tokens/s", run.speed.wall.median);
  const auto times = ratio(run.speed.wall, first.speed.wall);
  if (!is_first && times) speed += formatted(" (x %.2f)", *times);
  const std::string recipe = run.name == run.config.training.recipe
                                 ? ""
                                 : "<small>" + escaped(run.config.training.recipe) + "</small>";
  return formatted("<div class=\"card\" style=\"--run:%s\"><b>", run_colour(index)) +
         escaped(run.name) + "</b>" + recipe + formatted("<div class=\"big\">%.4f</div>", loss) +
         "<small>" + below + "</small><dl>" + entry("speed", speed) +
         entry("of bf16 peak", utilization(run)) + entry("peak memory", memory_text(run)) +
         entry("warnings", warnings_text(run)) + "</dl></div>\n";
}

// ---- the table --------------------------------------------------------------
std::vector<std::string> cells_of(const RunRecord& run, size_t index, const RunRecord& first) {
  return {run_label(index, run.name),
          escaped(run.config.training.recipe),
          steps_text(run),
          formatted("%.4f", run.train_loss),
          optional_text("%.4f", run.validation_loss),
          optional_text("%+.2f %%", difference_percent(run, first)),
          formatted("%.0f", run.speed.wall.median),
          optional_text("%.2f", ratio(run.speed.wall, first.speed.wall)),
          run.speed.cpu ? formatted("%.0f", run.speed.cpu->median) : "",
          run.speed.cpu && first.speed.cpu
              ? optional_text("%.2f", ratio(*run.speed.cpu, *first.speed.cpu))
              : "",
          flops_text(flops_per_s(run)),
          memory_text(run),
          warnings_text(run)};
}

std::string table(const Report& report) {
  const Runs& runs = report.runs;
  const std::vector<std::string> head{"run",
                                      "recipe",
                                      "steps",
                                      "train loss",
                                      "validation loss",
                                      "against the first",
                                      "tokens/s",
                                      "ratio",
                                      "tokens per CPU second",
                                      "ratio of CPU time",
                                      "model",
                                      "peak memory",
                                      "warnings"};
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < runs.size(); ++i) rows.push_back(cells_of(runs[i], i, runs.front()));
  if (report.bigram_loss) {
    std::vector<std::string> row(head.size());
    row[0] = "byte-bigram table";
    row[4] = formatted("%.4f", *report.bigram_loss);
    rows.push_back(row);
  }
  std::string uneven = join(uneven_runs(runs), "; ");
  if (!uneven.empty()) {
    uneven =
        "<p class=\"note\">No ratio where a speed says little: " + escaped(uneven) +
        formatted(". Above %.1f x it would tell of what else the machine did.</p>\n", kMaxSpread);
  }
  return html_table(head, rows) +
         "<p class=\"note\">Losses in nats per token; train loss: mean of the last steps. Speeds: "
         "medians over the steps; \"model\" counts the operations of the model, not those of a "
         "recipe. Peak memory: of tensors on a GPU; else the most resident memory of the process, "
         "LibTorch's libraries included, known when a run has ended. Warnings: values that left "
         "their bounds, over all looks at the numerics.</p>\n" +
         uneven;
}

}  // namespace

std::string summary(const Report& report) {
  const ReportVerdict verdict = verdict_of(report.runs);
  std::string html = "<p class=\"verdict\">" + escaped(verdict.sentence) + "</p>\n";
  if (!report.introduction.empty()) html += "<p>" + escaped(report.introduction) + "</p>\n";
  if (!verdict.evidence.empty()) {
    html += "<ul class=\"evidence\">";
    for (const std::string& line : verdict.evidence) html += "<li>" + escaped(line) + "</li>";
    html +=
        "</ul>\n<p class=\"note\">\xC2\xB1: 95 % confidence from the steps of these runs. Two "
        "runs that differ in nothing but a rounding drift apart as well, and another seed may "
        "end elsewhere: one pair of runs proves little about a recipe.</p>\n";
  }
  html += "<div class=\"cards\">";
  for (size_t i = 0; i < report.runs.size(); ++i) {
    html += card(report.runs[i], i, report.runs.front());
  }
  return html + "</div>\n" + table(report);
}

}  // namespace moe8
