// SPDX-License-Identifier: BSD-3-Clause
// What a run left in its folder, read back, finished or not.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/config/run_config.h"
#include "train/store/metrics.h"
#include "train/store/run_result.h"
#include "train/store/speed.h"

namespace moe8 {

struct RunRecord {
  std::string name{};  // for tables: the folder's last part
  std::string folder{};
  RunConfig config{};
  std::vector<StepMetrics> steps{};  // not empty, ascending
  std::vector<NumericsLine> numerics{};
  std::vector<RunStart> starts{};  // empty when an older version made it
  Speed speed{};
  bool finished = false;                    // there is a result.json
  double train_loss = 0;                    // mean of the last steps, see kLastSteps
  std::optional<double> validation_loss{};  // the last one
  std::optional<int64_t> peak_memory{};     // bytes; of a finished run
  std::vector<RankUse> ranks{};             // likewise, where there were several
};

/// @throws c10::Error when the folder holds no run, or files that are not a run's.
RunRecord read_run(const std::string& folder);

/// The same for several, with names that tell them apart.
/// @throws c10::Error likewise, and when there is none.
std::vector<RunRecord> read_runs(const std::vector<std::string>& folders);

/// Values that left their bounds, summed over all looks at the numerics.
size_t warnings_in(const RunRecord& run);

/// 100 * (loss / first's - 1); nothing unless both have a validation loss.
std::optional<double> difference_percent(const RunRecord& run, const RunRecord& first);

}  // namespace moe8
