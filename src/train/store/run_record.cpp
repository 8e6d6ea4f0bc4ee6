// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/run_record.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/check.h"
#include "train/store/run_folder.h"
#include "train/store/run_result.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRunRecord = "compare";

std::string last_part(const std::string& folder) {
  const fs::path path = fs::absolute(folder).lexically_normal();
  return path.has_filename() ? path.filename() : path.parent_path().filename();
}

double mean_of_last_losses(const std::vector<StepMetrics>& steps) {
  const size_t count = std::min(steps.size(), static_cast<size_t>(kLastSteps));
  double sum = 0;
  for (size_t i = steps.size() - count; i < steps.size(); ++i) sum += steps[i].loss;
  return sum / static_cast<double>(count);
}

}  // namespace

RunRecord read_run(const std::string& folder) {
  const RunFolder files{folder};
  MOE8_CHECK(fs::exists(files.config()) && fs::exists(files.metrics()), kRunRecord, folder,
             "expected the folder of a run, with run.toml and metrics.jsonl, got ",
             fs::exists(folder) ? "one without" : "none", ". See: moe8 train --help");
  RunRecord run{.name = last_part(folder), .folder = folder};
  run.config = load_run_config(files.config());
  MetricsRecord metrics = read_all_metrics(files.metrics());
  run.steps = std::move(metrics.steps);
  run.numerics = std::move(metrics.numerics);
  run.starts = std::move(metrics.starts);
  MOE8_CHECK(!run.steps.empty(), kRunRecord, folder, "expected at least one step, got none yet");
  run.train_loss = mean_of_last_losses(run.steps);
  run.speed = speed_of(run.steps);
  for (const StepMetrics& step : run.steps) {
    if (step.validation_loss) run.validation_loss = step.validation_loss;
  }
  if (fs::exists(files.result())) {  // only a run that came to its end has one
    run.finished = true;
    RunResult result = read_result(files.result());
    run.peak_memory = result.peak_memory;
    run.ranks = std::move(result.ranks);
  }
  return run;
}

std::vector<RunRecord> read_runs(const std::vector<std::string>& folders) {
  MOE8_CHECK(!folders.empty(), kRunRecord, "DIR",
             "expected at least one folder of a run, got none");
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

size_t warnings_in(const RunRecord& run) {
  size_t count = 0;
  for (const NumericsLine& look : run.numerics) count += look.warnings.size();
  return count;
}

std::optional<double> difference_percent(const RunRecord& run, const RunRecord& first) {
  if (!run.validation_loss || !first.validation_loss) return std::nullopt;
  return 100 * (*run.validation_loss / *first.validation_loss - 1);
}

}  // namespace moe8
