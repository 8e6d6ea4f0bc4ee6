// SPDX-License-Identifier: BSD-3-Clause
// The demo: several runs of one config, their table and verdict. The page: report.cpp.
#include "train/report/demo.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/check.h"
#include "train/report/demo_config.h"
#include "train/report/report.h"
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

std::string row(const char* format, auto... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

Report report_of(const DemoResult& result) {
  const RunResult& first = result.runs.front();
  std::vector<std::string> folders;
  for (const RunResult& run : result.runs) folders.push_back(run.folder);
  return {.title = "moe8 demo: one model, one seed, several recipes",
          .introduction = row("%.2f million parameters, %.2f million of them active for a token; "
                              "%lld steps.",
                              static_cast<double>(first.parameters) / 1e6,
                              static_cast<double>(first.active_parameters) / 1e6,
                              static_cast<long long>(first.steps)),
          .runs = read_runs(folders),
          .bigram_loss = result.bigram_loss};
}

}  // namespace

const std::string& demo_config_text() {
  static const std::string text = kDemoConfig;
  return text;
}

double DemoResult::difference(const RunResult& run) const {
  return 100 * (run.validation_loss / runs.front().validation_loss - 1);
}

DemoResult run_demo(const RunConfig& config, const std::vector<std::string>& recipes,
                    const RunOptions& options) {
  MOE8_CHECK(!recipes.empty(), "demo", "recipes", "expected at least one, got none");
  MOE8_CHECK(!config.data.files.empty(), "demo", "data",
             "expected at least one text file, got none. Pass --data FILE.");
  DemoResult result;
  result.config = config;
  result.bigram_loss = bigram_loss(config);
  RunOptions replacing = options;
  replacing.existing = ExistingRun::REPLACE;
  for (const std::string& name : recipes) {
    RunConfig one = config;
    one.training.recipe = name;
    one.checkpoint.interval = 0;  // the demo always begins anew
    one.output.folder = config.output.folder + "/" + name;
    result.runs.push_back(train(one, replacing));
  }
  result.report = config.output.folder + "/report.html";
  write_report(report_of(result), result.report);
  return result;
}

std::string to_table(const DemoResult& result) {
  std::string text = row("%-28s %10s %10s %9s %9s %9s\n", "recipe", "train loss", "validation",
                         "vs bf16", "tokens/s", "peak mem");
  for (const RunResult& run : result.runs) {
    text += row("%-28s %10.4f %10.4f %+8.2f%% %9.0f %6.0f MB\n", run.recipe.c_str(), run.train_loss,
                run.validation_loss, result.difference(run), run.tokens_per_s,
                static_cast<double>(run.peak_memory) / 1e6);
  }
  return text + row("%-28s %10s %10.4f\n", "byte-bigram table", "", result.bigram_loss);
}

Verdict verdict(const DemoResult& result) {
  double furthest = 0, gain = INFINITY;
  bool passed = true;
  for (const RunResult& run : result.runs) {
    const double difference = std::abs(result.difference(run));
    const double below = result.bigram_loss - run.validation_loss;
    passed = passed && difference <= kMostDifferencePercent && below >= kLeastGainOverBigram;
    furthest = std::max(furthest, difference);
    gain = std::min(gain, below);
  }
  const std::string facts =
      row("recipes are within %.2f%% of %s and at least %.2f nats below the bigram table", furthest,
          result.runs.front().recipe.c_str(), gain);
  if (passed) return {true, "The demo succeeded: all " + facts + "."};
  return {false, "The demo failed: " + facts +
                     row("; expected within %.0f%% and at least %.2f nats.", kMostDifferencePercent,
                         kLeastGainOverBigram)};
}

}  // namespace moe8
