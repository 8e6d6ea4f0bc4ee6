// SPDX-License-Identifier: BSD-3-Clause
// A training run from its config to its files.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

#include "train/config/run_config.h"
#include "train/progress.h"
#include "train/store/run_folder.h"
#include "train/store/run_result.h"

namespace moe8 {

class TextData;

struct RunOptions {
  ExistingRun existing = ExistingRun::REFUSE;
  std::ostream* progress = nullptr;  // null: silent
  Progress::Kind progress_kind = Progress::Kind::LINES;
  // Asked after every step: the number of a signal that wants the run to stop, or 0. Null: never.
  std::function<int()> interrupted;
  // Called with how many seconds such a signal may wait for the step that is being computed; with 0
  // when a stop would lose nothing: before the first step, at the end, in a failure. Null: never.
  std::function<void(double seconds)> patience;
};

/// Trains, and leaves in config.output.folder: run.toml (the resolved config, which reproduces the
/// run), metrics.jsonl (a line per step), checkpoints/ (docs/checkpoints.md), and at the end
/// result.json and, when asked for, model.safetensors. The folder is locked meanwhile.
/// Going on with a run that is finished changes nothing and returns its result.
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
