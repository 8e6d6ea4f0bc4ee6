// SPDX-License-Identifier: BSD-3-Clause
// The demo: several runs of one config, their tables and verdict. The page: report.cpp.
#include "train/report/demo.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/plain_text.h"
#include "train/report/demo_config.h"
#include "train/report/report.h"
#include "train/report/run_tables.h"
#include "train/text_data.h"

namespace moe8 {
namespace {

double bigram_loss(const RunConfig& config) {
  const TextData data(config.data.files, config.data.validation_fraction);
  const TrainingConfig& t = config.training;
  const int64_t batches =
      std::min(t.validation_batches, data.validation_batches(t.batch_size, t.seq_len));
  return data.bigram_loss(batches, t.batch_size, t.seq_len);
}

std::vector<RunConfig> configs_of(const RunConfig& config,
                                  const std::vector<std::string>& recipes) {
  std::vector<RunConfig> configs;
  for (const std::string& name : recipes) {
    RunConfig& one = configs.emplace_back(config);
    one.training.recipe = name;
    one.checkpoint.interval = 0;  // the demo always begins anew
    one.output.folder = config.output.folder + "/" + name;
  }
  return configs;
}

Report report_of(const DemoResult& result) {
  const RunConfig& config = result.runs.front().config;
  const ParameterCounts counts = count_parameters(config.model);
  return {.title = "moe8 demo: one model, one seed, several recipes",
          .introduction = formatted("%.2f million parameters, %.2f million of them active for a "
                                    "token; %lld steps, taken by the runs in turn.",
                                    static_cast<double>(counts.total) / 1e6,
                                    static_cast<double>(counts.active) / 1e6,
                                    static_cast<long long>(config.training.steps)),
          .runs = result.runs,
          .bigram_loss = result.bigram_loss};
}

}  // namespace

const std::string& demo_config_text() {
  static const std::string text = kDemoConfig;
  return text;
}

DemoResult run_demo(const RunConfig& config, const std::vector<std::string>& recipes,
                    const RunOptions& options) {
  MOE8_CHECK(!recipes.empty(), "demo", "recipes", "expected at least one, got none");
  MOE8_CHECK(!config.data.files.empty(), "demo", "data",
             "expected at least one text file, got none. Pass --data FILE.");
  DemoResult result;
  result.bigram_loss = bigram_loss(config);
  RunOptions replacing = options;
  replacing.existing = ExistingRun::REPLACE;
  std::vector<std::string> folders;
  for (const RunResult& run : train_in_turns(configs_of(config, recipes), replacing)) {
    folders.push_back(run.folder);
  }
  result.runs = read_runs(folders);
  result.report = config.output.folder + "/report.html";
  write_report(report_of(result), result.report);
  return result;
}

std::string to_table(const DemoResult& result, size_t columns) {
  return loss_table(result.runs, result.bigram_loss, columns) + '\n' +
         speed_table(result.runs, columns);
}

Verdict verdict(const DemoResult& result) {
  double furthest = 0, gain = INFINITY;
  bool passed = true;
  for (const RunRecord& run : result.runs) {
    const double difference = std::abs(difference_percent(run, result.runs.front()).value_or(NAN));
    const double below = result.bigram_loss - run.validation_loss.value_or(NAN);
    passed = passed && difference <= kMaxDifferencePercent && below >= kMinGainOverBigram;
    furthest = std::max(furthest, difference);
    gain = std::min(gain, below);
  }
  const std::string facts =
      formatted("recipes are within %.2f%% of %s and at least %.2f nats below the bigram table",
                furthest, result.runs.front().config.training.recipe.c_str(), gain);
  if (passed) return {true, "The demo succeeded: all " + facts + "."};
  return {false, "The demo failed: " + facts +
                     formatted("; expected within %.0f%% and at least %.2f nats.",
                               kMaxDifferencePercent, kMinGainOverBigram)};
}

}  // namespace moe8
