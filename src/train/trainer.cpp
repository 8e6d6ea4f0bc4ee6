// SPDX-License-Identifier: BSD-3-Clause
// Runs from their configs to their results: alone, in turns, or as one of several ranks.
#include "train/trainer.h"

#include <ATen/Parallel.h>

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "train/agree.h"
#include "train/batch_share.h"
#include "train/crew.h"
#include "train/run.h"
#include "train/thread_count.h"
#include "train/training_device.h"

namespace moe8 {
namespace {

constexpr int64_t kStepsAlone = 2;  // of runs in turns; the second has the moments of AdamW

void check(const RunConfig& config, const RunOptions& options) {
  config.validate();
  MOE8_CHECK(config.training.gradient_sums != GradientSums::PRODUCTS ||
                 launch_from_environment().world == 1,
             kTrain, "training.gradient_sums", "expected rounded for ",
             launch_from_environment().world,
             " processes, got products. They send each other rounded gradients.");
  MOE8_CHECK(!config.data.files.empty(), "config", "data.files",
             "expected at least one text file, got none. Pass --data FILE or set data.files.");
  to_fqn_config(config.conversion());  // names a recipe that there is
  check_run_folder(config.output.folder, options.existing);
  const int64_t needed = StepProfile::kWarmUp + options.profiled_steps + 1;
  MOE8_CHECK(options.profiled_steps == 0 || config.training.steps >= needed, kTrain,
             "training.steps", "expected at least ", needed, " to profile ", options.profiled_steps,
             ", got ", config.training.steps);
}

// The config that reproduces the run wherever it is started from.
RunConfig resolved(RunConfig config) {
  config.training.device = training_device(config.training.device).is_cuda() ? TrainingDevice::CUDA
                                                                             : TrainingDevice::CPU;
  if (config.training.threads == 0 && config.training.device == TrainingDevice::CUDA) {
    config.training.threads =
        threads_beside_gpu([](const char* name) -> const char* { return std::getenv(name); },
                           std::thread::hardware_concurrency());
  }
  const ThreadCount threads(config.training.threads);
  for (std::string& file : config.data.files)
    file = std::filesystem::absolute(file).lexically_normal();
  config.output.folder = std::filesystem::absolute(config.output.folder).lexically_normal();
  config.training.threads = at::get_num_threads();
  if (!config.convert.empty()) config.training.recipe = "custom";
  return config;
}

std::vector<RunResult> train_with(const std::vector<RunConfig>& configs, const RunOptions& options,
                                  const Crew& crew) {
  for (const RunConfig& config : configs) {
    agree(crew.world(), [&] {
      check(config, options);
      BatchShare(config.training.batch_size, config.training.accumulation, crew.data().size());
    });
  }
  Progress progress(crew.is_first() ? options.progress : nullptr, options.progress_kind,
                    options.columns);
  std::vector<std::unique_ptr<Run>> runs;
  int64_t held_at_first = 0;
  for (const RunConfig& config : configs) {
    const RunConfig complete = resolved(config);
    const at::Device device = crew.device(complete);
    restart_peak_memory(device);
    const int64_t held = memory_in_use(device);
    if (runs.empty()) held_at_first = held;
    Run& run = *runs.emplace_back(
        std::make_unique<Run>(complete, options, progress, held - held_at_first, crew));
    run.begin();
    if (configs.size() == 1) break;
    for (int64_t i = 0; i < kStepsAlone && run.turn(); ++i) {
    }
    run.share_process();
  }
  for (bool go_on = true; go_on;) {
    go_on = false;
    for (const auto& run : runs) go_on = run->turn() || go_on;
  }
  std::vector<RunResult> results;
  results.reserve(runs.size());
  for (const auto& run : runs) results.push_back(run->end());
  return results;
}

}  // namespace

RunResult train(const RunConfig& config, const RunOptions& options) {
  const Launch launch = launch_from_environment();
  if (launch.world == 1) return train_in_turns({config}, options).front();
  config.validate();
  Crew crew(config, launch, options.watch);
  try {
    return train_with({config}, options, crew).front();
  } catch (const std::exception& error) {
    const std::string text = crew.fail(error);
    if (text.empty()) throw OthersError();
    throw c10::Error(text, /*backtrace=*/nullptr);
  }
}

std::vector<RunResult> train_in_turns(const std::vector<RunConfig>& configs,
                                      const RunOptions& options) {
  const int64_t world = launch_from_environment().world;
  MOE8_CHECK(world == 1, kTrain, "world", "expected one process for several runs, got ", world,
             ". Start it without a launcher.");
  for (const RunConfig& config : configs) {
    const ParallelConfig& p = config.parallel;
    const bool experts = p.expert > 1;
    MOE8_CHECK(p.expert * p.tensor == 1, kTrain, experts ? "parallel.expert" : "parallel.tensor",
               "expected 1 in one process, got ", experts ? p.expert : p.tensor,
               ". Start it with: torchrun --no-python --nproc-per-node ", p.expert * p.tensor,
               " moe8 train ...");
  }
  return train_with(configs, options, Crew());
}

}  // namespace moe8
