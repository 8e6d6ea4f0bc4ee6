// SPDX-License-Identifier: BSD-3-Clause
// `moe8 compare`: a table of several runs, and their page. Reading and drawing: src/train/report/.
#include <cstdio>
#include <iostream>
#include <memory>

#include "cli.h"
#include "commands.h"
#include "text_table.h"
#include "train/report/report.h"

namespace moe8 {
namespace {

struct CompareArguments {
  std::vector<std::string> folders;
  std::string out = "report.html";
};

std::string number(const char* format, const std::optional<double>& value) {
  if (!value) return "-";
  char text[64];
  std::snprintf(text, sizeof text, format, *value);
  return text;
}

std::string table_of(const std::vector<RunRecord>& runs) {
  std::vector<std::vector<std::string>> rows{{"run", "recipe", "steps", "train loss", "validation",
                                              "vs first", "tokens/s", "peak mem", "warnings"}};
  for (const RunRecord& run : runs) {
    std::optional<double> megabytes;
    if (run.peak_memory) megabytes = static_cast<double>(*run.peak_memory) / 1e6;
    size_t warnings = 0;
    for (const NumericsLine& line : run.numerics) warnings += line.warnings.size();
    rows.push_back({run.name, run.config.training.recipe,
                    std::to_string(run.steps.back().step) + (run.finished ? "" : " (unfinished)"),
                    number("%.4f", run.train_loss), number("%.4f", run.validation_loss),
                    number("%+.2f%%", difference_percent(run, runs.front())),
                    number("%.0f", run.tokens_per_s), number("%.0f MB", megabytes),
                    run.numerics.empty() ? "-" : std::to_string(warnings)});
  }
  return text_table(rows);
}

void run_compare(const CompareArguments& arguments) {
  const std::vector<RunRecord> runs = read_runs(arguments.folders);
  std::cout << table_of(runs);
  write_report(
      {.title =
           "moe8: " + std::to_string(runs.size()) + (runs.size() == 1 ? " run" : " runs compared"),
       .introduction = runs.size() == 1 ? "" : "Differences are to " + runs.front().name + ".",
       .runs = runs},
      arguments.out);
  std::cout << "\nReport: " << arguments.out << '\n';
}

}  // namespace

void add_compare_command(CLI::App& app) {
  auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command =
      app.add_subcommand("compare", "Compare runs: a table, and a page with curves and maps");
  command
      ->add_option("DIR", arguments->folders,
                   "Folders of runs, the baseline first; also of runs "
                   "that still go on")
      ->required();
  command->add_option("--out", arguments->out, "The page; replaces an older one")
      ->capture_default_str()
      ->type_name("FILE");
  command->footer(examples("moe8 compare runs/bf16 runs/mx --out report.html"));
  command->callback([arguments] { run_compare(*arguments); });
}

}  // namespace moe8
