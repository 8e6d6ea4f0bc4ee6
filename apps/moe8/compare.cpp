// SPDX-License-Identifier: BSD-3-Clause
// `moe8 compare`: several runs as tables, JSON or CSV, and their page. What is read and drawn lives
// in src/train/.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "commands.h"
#include "train/report/rank_tables.h"
#include "train/report/report.h"
#include "train/report/run_tables.h"

namespace moe8 {
namespace {

struct CompareArguments {
  std::vector<std::string> folders;
  std::string out = "report.html";
  bool json = false;
  bool csv = false;
};

using Json = nlohmann::ordered_json;

template <typename T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

std::optional<double> cpu_rate(const RunRecord& run) {
  return run.speed.cpu ? std::optional(run.speed.cpu->median) : std::nullopt;
}

// The one list of what is known of a run, for JSON and CSV. Not known: null.
Json json_of(const RunRecord& run, const RunRecord& first) {
  const RunStart start = run.starts.empty() ? RunStart{} : run.starts.front();
  std::optional<RanksSummary> summary;
  if (!run.ranks.empty()) summary = summary_of(run.ranks);
  return {{"name", run.name},
          {"folder", run.folder},
          {"recipe", run.config.training.recipe},
          {"finished", run.finished},
          {"steps", run.steps.back().step},
          {"planned_steps", run.config.training.steps},
          {"train_loss", run.train_loss},
          {"validation_loss", or_null(run.validation_loss)},
          {"difference_percent", or_null(difference_percent(run, first))},
          {"tokens_per_s", run.speed.wall.median},
          {"tokens_per_s_spread", run.speed.wall.spread},
          {"tokens_per_s_ratio", or_null(ratio(run.speed.wall, first.speed.wall))},
          {"tokens_per_cpu_s", or_null(cpu_rate(run))},
          {"peak_memory_bytes", or_null(run.peak_memory)},
          {"warnings", warnings_in(run)},
          {"ranks", run.ranks.empty() ? Json() : Json(run.ranks.size())},
          {"slowest_rank", summary ? Json(summary->slowest) : Json()},
          {"waited_share", summary ? Json(summary->waited_share) : Json()},
          {"most_expert_rows", summary ? Json(summary->most_expert_rows) : Json()},
          {"started", start.date},
          {"program", start.program},
          {"device", start.device}};
}

Json json_of(const std::vector<RunRecord>& runs) {
  Json list = Json::array();
  for (const RunRecord& run : runs) list.push_back(json_of(run, runs.front()));
  return list;
}

// A field of RFC 4180.
std::string csv_field(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  const std::string text = value.get<std::string>();
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string field = "\"";
  for (const char c : text) field += c == '"' ? std::string("\"\"") : std::string(1, c);
  return field + "\"";
}

std::string csv_of(const std::vector<RunRecord>& runs) {
  const Json list = json_of(runs);
  std::string head, lines;
  for (const auto& [key, value] : list.front().items()) head += (head.empty() ? "" : ",") + key;
  for (const Json& run : list) {
    std::string line;
    for (const Json& value : run) line += csv_field(value) + ",";
    line.back() = '\n';
    lines += line;
  }
  return head + "\n" + lines;
}

void write_page(const std::vector<RunRecord>& runs, const std::string& path) {
  write_report(
      {.title =
           "moe8: " + std::to_string(runs.size()) + (runs.size() == 1 ? " run" : " runs compared"),
       .introduction = runs.size() == 1 ? "" : "Differences are to " + runs.front().name + ".",
       .runs = runs},
      path);
}

void run_compare(const CompareArguments& arguments, bool wants_page) {
  const std::vector<RunRecord> runs = read_runs(arguments.folders);
  const bool for_programs = arguments.json || arguments.csv;
  if (arguments.json) {
    // Names of folders may hold any bytes.
    std::cout << json_of(runs).dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
  } else if (arguments.csv) {
    std::cout << csv_of(runs);
  } else {
    const size_t columns = table_style().columns;
    std::cout << loss_table(runs, {}, columns) << '\n' << speed_table(runs, columns);
    if (const std::string ranks = rank_table(runs, columns); !ranks.empty()) {
      std::cout << '\n' << ranks;
    }
  }
  if (for_programs && !wants_page) return;
  write_page(runs, arguments.out);
  if (!for_programs) std::cout << "\nReport: " << arguments.out << '\n';
}

}  // namespace

void add_compare_command(CLI::App& app) {
  auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command =
      app.add_subcommand("compare", "Compare runs: a table, and a page with curves and maps");
  command
      ->add_option("DIR", arguments->folders,
                   "Folders of runs, the baseline first; also of runs that still go on")
      ->required();
  const CLI::Option* out =
      command
          ->add_option("--out", arguments->out,
                       "The page; replaces an older one. With --json and --csv only when asked for")
          ->capture_default_str()
          ->type_name("FILE");
  CLI::Option* json = command->add_flag("--json", arguments->json, "Print JSON instead of tables");
  command->add_flag("--csv", arguments->csv, "Print CSV, a line for every run")->excludes(json);
  command->footer(
      "Speeds are medians over the steps. There is no ratio of speeds where the rates within a\n"
      "run spread widely: it would tell of what else the machine did.\n\n" +
      examples("moe8 compare runs/bf16 runs/mx --out report.html\nmoe8 compare --csv runs/*"));
  command->callback([arguments, out] { run_compare(*arguments, out->count() > 0); });
}

}  // namespace moe8
