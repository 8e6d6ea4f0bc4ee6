// SPDX-License-Identifier: BSD-3-Clause
// `moe8 train` and `moe8 demo`: options to configs. The work is done in src/train/.
#include "train.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>

#include "base/plain_text.h"
#include "cli.h"
#include "moe8/parallel.h"
#include "origin.h"
#include "run_options.h"
#include "train/interrupt.h"
#include "train/report/demo.h"
#include "train/terminal.h"

namespace moe8 {
namespace {

struct TrainArguments {
  std::string config;
  std::string recipe;
  std::string convert;
  std::vector<std::string> overrides;
  std::vector<std::string> data;
  std::string out;
  int64_t profiled_steps = 0;
  bool overwrite = false;
  bool resume = false;
};

struct DemoArguments {
  std::string config;
  std::vector<std::string> recipes{"bf16", "mxfp8_rceil", "fp8_rowwise"};
  std::vector<std::string> overrides;
  std::vector<std::string> data;
  std::string out = "runs/demo";
};

RunOptions progress_options() {
  RunOptions options;
  options.origin = this_origin();
  options.columns = [] { return terminal_columns(STDOUT_FILENO); };
  options.progress = &std::cout;
  options.progress_kind = isatty(STDOUT_FILENO) ? Progress::Kind::TERMINAL : Progress::Kind::LINES;
  return options;
}

// OpenMP's idle threads spin for milliseconds by default, which starves the working ones as soon as
// another process wants a core. A short spin costs nothing where the cores are free and saves those
// that are not (docs/decisions/007-waiting-threads.md). The count is read when the program is
// loaded, so it takes a restart; where that fails, training goes on as it is.
void restart_with_short_spins() {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  setenv("GOMP_SPINCOUNT", "10000", 1);
  if (!words.empty()) execv("/proc/self/exe", arguments.data());
}

// The config file, or the one that the run to be resumed left, changed by the other options.
RunConfig config_of(const TrainArguments& arguments) {
  const std::string file =
      arguments.config.empty() ? RunFolder{arguments.out}.config() : arguments.config;
  RunConfig config = load_with_overrides(file, arguments.overrides);
  if (!arguments.recipe.empty() || !arguments.convert.empty()) {
    config.convert.clear();  // the command line decides, not the file
    config.training.recipe = arguments.recipe.empty() ? "custom" : arguments.recipe;
  }
  if (!arguments.convert.empty()) config.convert = read_conversion_rules(arguments.convert);
  if (!arguments.data.empty()) config.data.files = arguments.data;
  if (!arguments.out.empty()) config.output.folder = arguments.out;
  return config;
}

RunResult train_or_end(const RunConfig& config, const RunOptions& options) {
  try {
    return train(config, options);
  } catch (const OthersError&) {
    end_as_failed();
  }
}

// Of several ranks: who the others waited for, and how long.
std::string ranks_line(const std::vector<RankUse>& ranks) {
  const RanksSummary summary = summary_of(ranks);
  std::string line = formatted(
      "Ranks: %zu, the slowest %zu; waiting for others %.1f %% of the time; %.1f MB sent a step by "
      "a rank",
      ranks.size(), summary.slowest, 100 * summary.waited_share, summary.bytes_sent / 1e6);
  if (summary.most_expert_rows > 0) {
    line +=
        formatted("; most rows of experts on a rank: %.2f of the mean", summary.most_expert_rows);
  }
  return line;
}

void print_end(const RunResult& result, int64_t steps) {
  if (result.stopped_by != 0) {
    std::cout << formatted(
        "Stopped by SIG%s after step %lld of %lld. Go on with: moe8 train --resume --out %s\n",
        sigabbrev_np(result.stopped_by), static_cast<long long>(result.steps),
        static_cast<long long>(steps), result.folder.c_str());
    return;
  }
  std::cout << formatted(
      "Trained %lld steps with %s: train loss %.4f, validation loss %.4f, %.0f tokens/s, peak "
      "memory %.0f MB. Results in %s\n",
      static_cast<long long>(result.steps), result.recipe.c_str(), result.train_loss,
      result.validation_loss, result.tokens_per_s, static_cast<double>(result.peak_memory) / 1e6,
      result.folder.c_str());
  if (!result.ranks.empty()) std::cout << ranks_line(result.ranks) << '\n';
  std::cout << "Look at it, alone or beside others: moe8 compare " << result.folder << '\n';
}

void run_train(const TrainArguments& arguments) {
  if (arguments.config.empty()) {
    if (!arguments.resume) throw CLI::RequiredError("--config");
    if (arguments.out.empty()) throw CLI::RequiredError("--config or --out");
  }
  restart_with_short_spins();
  const RunConfig config = config_of(arguments);
  const Interrupt interrupt;
  RunOptions options = progress_options();
  options.interrupted = &Interrupt::received;
  options.patience = &Interrupt::wait;
  options.profiled_steps = arguments.profiled_steps;
  if (arguments.overwrite) options.existing = ExistingRun::REPLACE;
  if (arguments.resume) options.existing = ExistingRun::RESUME;
  const RunResult result = train_or_end(config, options);
  if (launch_from_environment().rank == 0) print_end(result, config.training.steps);
  if (result.stopped_by != 0) throw CLI::RuntimeError(128 + result.stopped_by);
}

void run_demo_command(const DemoArguments& arguments) {
  restart_with_short_spins();
  RunConfig config =
      arguments.config.empty()
          ? parse_with_overrides(demo_config_text(), "configs/demo.toml", arguments.overrides)
          : load_with_overrides(arguments.config, arguments.overrides);
  if (!arguments.data.empty()) config.data.files = arguments.data;
  config.output.folder = arguments.out;
  const DemoResult result = run_demo(config, arguments.recipes, progress_options());
  const Verdict end = verdict(result);
  std::cout << '\n'
            << to_table(result, table_style().columns) << "\nReport: " << result.report << '\n'
            << end.sentence << '\n';
  if (!end.passed) throw CLI::RuntimeError(1);
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train a model on text files");
  command
      ->add_option("--config", arguments->config,
                   "TOML file of the run, see configs/; --resume does without")
      ->type_name("FILE");
  CLI::Option* recipe = add_recipe_option(*command, arguments->recipe,
                                          "What computes in low precision; see moe8 recipes");
  command->add_option("--convert", arguments->convert, "The same, key by key, as a TOML file")
      ->type_name("FILE")
      ->excludes(recipe);
  add_set_option(*command, arguments->overrides);
  command
      ->add_option("--data", arguments->data, "Files of text or of tokens, instead of data.files")
      ->type_name("FILE");
  command->add_option("--out", arguments->out, "Folder of the results, instead of output.folder")
      ->type_name("DIR");
  command
      ->add_option(
          "--profile", arguments->profiled_steps,
          "Profile so many steps after a few to warm up: a table of where their time goes, "
          "and trace.json of one more step for ui.perfetto.dev")
      ->check(CLI::Range(1, 1000))
      ->type_name("STEPS");
  CLI::Option* overwrite = command->add_flag("--overwrite", arguments->overwrite,
                                             "Replace the run that the folder holds");
  command
      ->add_flag("--resume", arguments->resume,
                 "Go on after the newest checkpoint in the folder, or begin where there is none")
      ->excludes(overwrite);
  command->footer(
      "SIGINT, SIGTERM and SIGHUP write a checkpoint and end with exit status 128 + signal; a "
      "second "
      "one ends at once. The losses of a resumed run are those of an unbroken one.\n\n" +
      examples(
          "moe8 train --config configs/demo.toml --data text.txt --recipe mxfp8_rceil --out "
          "runs/mx\n"
          "moe8 train --config configs/demo.toml --data a.txt b.txt --set training.steps=1000\n"
          "moe8 train --resume --out runs/mx"));
  command->callback([arguments] { run_train(*arguments); });
}

void add_demo_command(CLI::App& app) {
  auto arguments = std::make_shared<DemoArguments>();
  CLI::App* command = app.add_subcommand(
      "demo", "Train a small model with several recipes from one seed and compare them");
  command->add_option("--data", arguments->data, "Text files")->type_name("FILE");
  command->add_option("--recipes", arguments->recipes, "Recipes, the baseline first")
      ->capture_default_str()
      ->type_name("RECIPE,...")
      ->check(is_recipe())
      ->delimiter(',');
  command
      ->add_option("--config", arguments->config,
                   "Another config than the built-in configs/demo.toml")
      ->type_name("FILE");
  add_set_option(*command, arguments->overrides);
  command->add_option("--out", arguments->out, "Folder of the runs and report.html")
      ->capture_default_str()
      ->type_name("DIR");
  command->footer(examples("moe8 demo --data text.txt --recipes bf16,mxfp8_rceil"));
  command->callback([arguments] { run_demo_command(*arguments); });
}

}  // namespace moe8
