// SPDX-License-Identifier: BSD-3-Clause
// What a run came to: result.json, written at its end and read back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe8 {

/// How one of several ranks spent the steps of a process.
struct RankUse {
  double step_seconds = 0;    // the mean of a step
  double waited_seconds = 0;  // of these, the host for other ranks
  double bytes_sent = 0;      // a step
  int64_t peak_memory = 0;    // bytes
  double expert_rows = 0;     // a step, that its experts got
};

/// What stands out among the ranks of a run.
struct RanksSummary {
  size_t slowest = 0;           // the rank that computed longest, without what it waited for others
  double waited_share = 0;      // of the time of all ranks
  double bytes_sent = 0;        // a step, by the rank that sends most
  double most_expert_rows = 0;  // of a rank, by the mean of all; 0 where all hold all experts
};

/// @param ranks  not empty
RanksSummary summary_of(const std::vector<RankUse>& ranks);

struct RunResult {
  std::string recipe;  // "custom" when a conversion file decided
  std::string folder;
  int64_t steps = 0;           // done, in this and earlier processes
  int stopped_by = 0;          // the signal because of which steps are missing; 0: none are
  double train_loss = 0;       // mean of the last steps, see kLastSteps
  double validation_loss = 0;  // after the last step; NaN when there is none yet
  double tokens_per_s = 0;     // of the median step, see speed.h
  int64_t peak_memory = 0;     // bytes, the most of all its processes; see trainer.h
  double seconds = 0;          // the whole run
  int64_t parameters = 0;
  int64_t active_parameters = 0;
  std::vector<RankUse> ranks{};      // in this process, where there were several
  int64_t converted_parameters = 0;  // how many of the tensors compute in low precision
};

/// RunResult::train_loss is the mean of so many last steps (of all, when there are fewer).
inline constexpr int64_t kLastSteps = 20;

/// Writes all but the folder and the signal. @throws c10::Error on a failure to write.
void write_result(const std::string& path, const RunResult& result);

/// @throws c10::Error naming the file when it is not the result of a run.
RunResult read_result(const std::string& path);

}  // namespace moe8
