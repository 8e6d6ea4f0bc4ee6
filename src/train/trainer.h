// SPDX-License-Identifier: BSD-3-Clause
// A training run from its config to its files.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

#include "train/config/run_config.h"
#include "train/progress.h"
#include "train/store/run_folder.h"

namespace moe8 {

class TextData;

struct RunOptions {
  ExistingRun existing = ExistingRun::REFUSE;
  std::ostream* progress = nullptr;  // null: silent
  Progress::Kind progress_kind = Progress::Kind::LINES;
  // Asked after every step: the number of a signal that wants the run to stop, or 0. Null: never.
  std::function<int()> interrupted;
};

struct RunResult {
  std::string recipe;  // "custom" when a conversion file decided
  std::string folder;
  int64_t steps = 0;           // done, in this and earlier processes
  int stopped_by = 0;          // the signal because of which steps are missing; 0: none are
  double train_loss = 0;       // mean of the last steps, see kLastSteps
  double validation_loss = 0;  // after the last step
  double tokens_per_s = 0;     // without the first step of a process and without validation
  int64_t peak_memory = 0;     // bytes, see training_device.h
  double seconds = 0;          // the whole run
  int64_t parameters = 0;
  int64_t active_parameters = 0;
  int64_t converted_parameters = 0;  // how many of the tensors compute in low precision
};

/// RunResult::train_loss is the mean of so many last steps (of all, when there are fewer).
inline constexpr int64_t kLastSteps = 20;

/// Trains, and leaves in config.output.folder: run.toml (the resolved config, which reproduces the
/// run), metrics.jsonl (a line per step), checkpoints/ (docs/checkpoints.md), and at the end
/// result.json and, when asked for, model.safetensors. The folder is locked meanwhile.
/// The same config gives the same losses on the same machine with the same number of threads,
/// however often the run is killed and resumed.
/// @throws c10::Error on a bad config, missing or short text, a folder that holds a run or in which
/// one is going on, a conversion that cannot be done (all before any training and before the folder
/// is touched); on resuming, a checkpoint of another run or only damaged ones (neither is touched);
/// a loss or gradient that is not finite, a failure to write.
RunResult train(const RunConfig& config, const RunOptions& options = {});

/// Mean loss in nats per token of the first config.validation_batches batches, or of all there are.
double validation_loss(TransformerImpl& model, const TextData& data, const TrainingConfig& config);

}  // namespace moe8
