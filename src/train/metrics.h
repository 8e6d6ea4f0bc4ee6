// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl: one JSON object for every step, readable while the run goes on. Lines of another
// kind have a "kind" beside their "step".
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace moe8 {

struct StepMetrics {
  int64_t step = 0;  // 1 is the first
  double loss = 0;   // mean over the tokens of the step, in nats, before the step's update
  double lr = 0;
  double grad_norm = 0;  // before clipping
  double tokens_per_s = 0;
  // Rows that the least and the most loaded expert of any layer got, relative to the mean: 1 and 1
  // when perfectly balanced.
  double expert_load_min = 0;
  double expert_load_max = 0;
  std::optional<double> validation_loss;  // after the step's update, where one was measured

  bool operator==(const StepMetrics&) const = default;
};

class MetricsFile {
 public:
  /// Makes or empties the file. @throws c10::Error when it cannot be written.
  explicit MetricsFile(const std::string& path);
  /// Appends one line and flushes it. @throws c10::Error on a failure to write.
  void write(const StepMetrics& metrics);

 private:
  std::string path_;
  std::ofstream out_;
};

/// The steps; lines of another kind are passed over.
/// @throws c10::Error naming file and line of what is not a step.
std::vector<StepMetrics> read_metrics(const std::string& path);

}  // namespace moe8
