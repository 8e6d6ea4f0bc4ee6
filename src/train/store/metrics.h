// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl: one JSON object for every step, readable while the run goes on. Lines of another
// kind have a "kind" beside their "step", and stand no later than the next step's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/file.h"
#include "moe8/numerics.h"

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
  std::optional<double> validation_loss{};  // after the step's update, where one was measured

  bool operator==(const StepMetrics&) const = default;
};

/// What the numerics line of a step says, as far as a report shows it.
struct NumericsLine {
  struct Product {
    std::string weight{};   // "layers.1.moe.experts.w1"
    std::string product{};  // "out", "grad_input" or "grad_weight"
    double sqnr_db = 0;     // infinite when nothing was lost
    double underflow = 0;   // of the worse operand, here and below
    double saturated = 0;
    double amax = 0;  // the larger; NaN when not finite
  };
  int64_t step = 0;
  std::vector<Product> products;  // those of a weight together, sorted by name
  std::vector<ExpertTokens> experts;
  std::vector<std::string> warnings;
};

class MetricsFile {
 public:
  /// Keeps the lines up to the last of step `last_step`, and cuts off what follows: later steps,
  /// and half a line. With 0, makes or empties the file.
  /// @throws c10::Error when it cannot be written, or the lines of steps 1 to last_step are not all
  /// there, each once.
  explicit MetricsFile(const std::string& path, int64_t last_step = 0);
  /// Appends one line, which other programs see at once. @throws c10::Error on a failure to write.
  void write(const StepMetrics& metrics);
  /// The same for {"kind": "numerics", "step": step, ...}, the rest as NumericsReport::to_json().
  /// Call it before the step's own line is written.
  void write(int64_t step, const NumericsReport& report);
  /// Waits until the disk has all lines.
  void sync();

 private:
  void write(const std::string& line);

  std::string path_;
  Descriptor fd_;
};

/// The steps; lines of another kind are passed over, and a last line that is not ended yet.
/// @throws c10::Error naming file and line of what is not a step, or has a NUL byte.
std::vector<StepMetrics> read_metrics(const std::string& path);

/// The rate of the median step: one number for a run, finished or not, that neither its first step
/// nor a pause of the machine moves. 0 without steps.
double median_tokens_per_s(const std::vector<StepMetrics>& steps);

/// The lines of kind "numerics"; others are passed over. @throws c10::Error likewise.
std::vector<NumericsLine> read_numerics(const std::string& path);

}  // namespace moe8
