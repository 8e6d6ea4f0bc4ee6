// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/run_record.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/check.h"
#include "convert/toml_input.h"
#include "train/store/run_folder.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOp = "compare";

std::string last_part(const std::string& folder) {
  const fs::path path = fs::absolute(folder).lexically_normal();
  return path.has_filename() ? path.filename() : path.parent_path().filename();
}

double median_tokens_per_s(const std::vector<StepMetrics>& steps) {
  std::vector<double> rates;
  rates.reserve(steps.size());
  for (const StepMetrics& step : steps) rates.push_back(step.tokens_per_s);
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::ranges::nth_element(rates, middle);
  return *middle;
}

double mean_of_last_losses(const std::vector<StepMetrics>& steps) {
  const size_t count = std::min(steps.size(), static_cast<size_t>(kLastSteps));
  double sum = 0;
  for (size_t i = steps.size() - count; i < steps.size(); ++i) sum += steps[i].loss;
  return sum / static_cast<double>(count);
}

// What result.json adds; a run that did not come to its end has none.
void add_result(RunRecord& run, const std::string& path) {
  if (!fs::exists(path)) return;
  try {
    const auto json = nlohmann::json::parse(read_text_file(kOp, path));
    run.finished = true;
    run.tokens_per_s = json.at("tokens_per_s");
    run.peak_memory = json.at("peak_memory_bytes");
  } catch (const nlohmann::json::exception& error) {
    fail(kOp, path, c10::str("expected the result of a run, got: ", error.what()));
  }
}

}  // namespace

RunRecord read_run(const std::string& folder) {
  const RunFolder files{folder};
  MOE8_CHECK(fs::exists(files.config()) && fs::exists(files.metrics()), kOp, folder,
             "expected the folder of a run, with run.toml and metrics.jsonl, got ",
             fs::exists(folder) ? "one without" : "none", ". See: moe8 train --help");
  RunRecord run{.name = last_part(folder), .folder = folder};
  run.config = load_run_config(files.config());
  run.steps = read_metrics(files.metrics());
  MOE8_CHECK(!run.steps.empty(), kOp, folder, "expected at least one step, got none yet");
  run.numerics = read_numerics(files.metrics());
  run.train_loss = mean_of_last_losses(run.steps);
  run.tokens_per_s = median_tokens_per_s(run.steps);
  for (const StepMetrics& step : run.steps) {
    if (step.validation_loss) run.validation_loss = step.validation_loss;
  }
  add_result(run, files.result());
  return run;
}

std::vector<RunRecord> read_runs(const std::vector<std::string>& folders) {
  MOE8_CHECK(!folders.empty(), kOp, "DIR", "expected at least one folder of a run, got none");
  std::vector<RunRecord> runs;
  runs.reserve(folders.size());
  for (const std::string& folder : folders) runs.push_back(read_run(folder));
  for (RunRecord& run : runs) {
    const auto same = [&](const RunRecord& other) {
      return last_part(other.folder) == last_part(run.folder);
    };
    if (std::ranges::count_if(runs, same) > 1) run.name = run.folder;
  }
  return runs;
}

std::optional<double> difference_percent(const RunRecord& run, const RunRecord& first) {
  if (!run.validation_loss || !first.validation_loss) return std::nullopt;
  return 100 * (*run.validation_loss / *first.validation_loss - 1);
}

}  // namespace moe8
