// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/run_tables.h"

#include <algorithm>

#include "base/nearest.h"
#include "base/plain_text.h"
#include "base/text_table.h"

namespace moe8 {
namespace {

using Row = std::vector<std::string>;
using Runs = std::vector<RunRecord>;

std::string number(const char* format, const std::optional<double>& value) {
  return value ? formatted(format, *value) : "-";
}

std::optional<double> megabytes(const RunRecord& run) {
  if (!run.peak_memory) return std::nullopt;
  return static_cast<double>(*run.peak_memory) / 1e6;
}

bool recipes_are_names(const Runs& runs) {
  return std::ranges::all_of(
      runs, [](const RunRecord& run) { return run.name == run.config.training.recipe; });
}

std::optional<double> median_of(const std::optional<Rate>& rate) {
  return rate ? std::optional(rate->median) : std::nullopt;
}

// Of CPU time, where both have it.
std::optional<double> cpu_ratio(const RunRecord& run, const RunRecord& first) {
  if (!run.speed.cpu || !first.speed.cpu) return std::nullopt;
  return ratio(*run.speed.cpu, *first.speed.cpu);
}

}  // namespace

std::string steps_text(const RunRecord& run) {
  const std::string done = std::to_string(run.steps.back().step);
  return run.finished ? done : done + " of " + std::to_string(run.config.training.steps);
}

std::string loss_table(const Runs& runs, std::optional<double> bigram_loss, size_t columns) {
  const bool one_name = recipes_are_names(runs);
  const auto row = [&](const std::string& name, const std::string& recipe, Row rest) {
    Row cells = one_name ? Row{name} : Row{name, recipe};
    cells.insert(cells.end(), rest.begin(), rest.end());
    return cells;
  };
  const std::string first = runs.front().name == "bf16" ? "vs bf16" : "vs first";
  std::vector<Row> rows{row(one_name ? "recipe" : "run", "recipe",
                            {"steps", "train loss", "validation", first, "warnings"})};
  for (const RunRecord& run : runs) {
    rows.push_back(
        row(run.name, run.config.training.recipe,
            {steps_text(run), number("%.4f", run.train_loss), number("%.4f", run.validation_loss),
             number("%+.2f%%", difference_percent(run, runs.front())),
             run.numerics.empty() ? "-" : std::to_string(warnings_in(run))}));
  }
  if (bigram_loss) {
    rows.push_back(row("byte-bigram table", "", {"", "", number("%.4f", bigram_loss), "", ""}));
  }
  return text_table(rows, {.columns = columns});
}

std::string speed_table(const Runs& runs, size_t columns) {
  const bool cpu = std::ranges::any_of(runs, [](const RunRecord& r) { return !!r.speed.cpu; });
  std::vector<Row> rows{{"speed", "tokens/s", "ratio"}};
  if (cpu) rows[0].insert(rows[0].end(), {"tokens/CPU second", "ratio"});
  rows[0].emplace_back("peak memory");
  for (const RunRecord& run : runs) {
    Row row{run.name, number("%.0f", run.speed.wall.median),
            number("%.2f", ratio(run.speed.wall, runs.front().speed.wall))};
    if (cpu) {
      row.push_back(number("%.0f", median_of(run.speed.cpu)));
      row.push_back(number("%.2f", cpu_ratio(run, runs.front())));
    }
    row.push_back(number("%.0f MB", megabytes(run)));
    rows.push_back(std::move(row));
  }
  std::string text = text_table(rows, {.columns = columns});
  const std::vector<std::string> uneven = uneven_runs(runs);
  if (uneven.empty()) return text;
  const std::string why = "No ratio where the speed says little: " + join(uneven, "; ") + ".";
  for (const std::string& line : folded(why, columns > 0 ? columns : why.size())) {
    text += line;
    text += '\n';
  }
  return text;
}

std::vector<std::string> uneven_runs(const Runs& runs) {
  std::vector<std::string> list;
  for (const RunRecord& run : runs) {
    const std::string wall = no_ratio_because(run.speed.wall);
    const std::string cpu = run.speed.cpu ? no_ratio_because(*run.speed.cpu) : "";
    if (!wall.empty()) {
      list.push_back(run.name + ": " + wall);
    } else if (!cpu.empty()) {
      list.push_back(run.name + ", CPU time: " + cpu);
    }
  }
  return list;
}

}  // namespace moe8
