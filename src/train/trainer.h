// SPDX-License-Identifier: BSD-3-Clause
// A training run from its config to its files.
#pragma once

#include <c10/util/Exception.h>

#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "moe8/parallel.h"
#include "train/config/run_config.h"
#include "train/progress.h"
#include "train/store/run_folder.h"
#include "train/store/run_result.h"
#include "train/watch.h"

namespace moe8 {

class TextData;
class TransformerImpl;

/// Who trains, for the record in metrics.jsonl; see RunStart.
struct RunOrigin {
  std::string program{};
  std::string command{};
  std::string machine{};
};

struct RunOptions {
  ExistingRun existing = ExistingRun::REFUSE;
  std::ostream* progress = nullptr;  // null: silent
  Progress::Kind progress_kind = Progress::Kind::LINES;
  std::function<int()> columns;  // of the terminal; null: no limit
  // Asked after every step: the number of a signal that wants the run to stop, or 0. Null: never.
  std::function<int()> interrupted;
  // Called with how many seconds such a signal may wait for the step that is being computed; with 0
  // when a stop would lose nothing: before the first step, at the end, in a failure. Null: never.
  std::function<void(double seconds)> patience;
  RunOrigin origin{};
  // So many steps, after a few to warm up, are profiled: trace.json and profile.txt in the folder. Of
  // several ranks the first one's.
  int64_t profiled_steps = 0;
  WatchOptions watch{};  // of several ranks: when one that is silent is given up
};

/// What ends a rank because of another one, which has printed why.
struct OthersError : c10::Error {
  OthersError() : c10::Error("another rank ended the run and said why", /*backtrace=*/nullptr) {}
};

/// Trains, alone or with all processes that a launcher started, and leaves in config.output.folder:
/// run.toml (the resolved config, which reproduces the run), metrics.jsonl (a line for every step),
/// tensorboard/ when asked for, checkpoints/ (docs/checkpoints.md), and at the end result.json and,
/// when asked for, model.safetensors. The folder is locked meanwhile.
/// Going on with a run that is finished changes nothing and returns its result.
/// The same config gives the same losses on the same machine with the same number of threads,
/// however often the run is killed and resumed.
/// @throws c10::Error on a bad config, missing or short text, a folder that holds a run or in which
/// one is going on, a conversion that cannot be done (all before any training and before the folder
/// is touched); on resuming, a checkpoint of another run or only damaged ones (neither is touched);
/// a loss or gradient that is not finite, a failure to write.
RunResult train(const RunConfig& config, const RunOptions& options = {});

/// Trains several runs in this process, a step of each in turn, so that whatever else the machine
/// does slows all of them alike. Every run leaves in its folder what train() would leave, the same
/// to the last bit but for times and memory. Each begins with a few steps alone; the memory it
/// takes is measured then, as what the process holds beyond what the runs before it hold at rest.
/// @return in the order of `configs`. @throws c10::Error as train(); bad configs before any run.
std::vector<RunResult> train_in_turns(const std::vector<RunConfig>& configs,
                                      const RunOptions& options = {});

/// Mean loss in nats per token of the first config.validation_batches batches, or of all there are.
/// Several ranks share the batches out; the loss has the bits of one process on all of them.
double validation_loss(TransformerImpl& model, const TextData& data, const TrainingConfig& config,
                       const Group& ranks = {});

}  // namespace moe8
