// SPDX-License-Identifier: BSD-3-Clause
// The health of a run: when its numerics are looked at, and whose experts got how much. What is
// looked at: src/numerics/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moe8/numerics.h"
#include "moe8/transformer.h"
#include "train/config/run_config.h"

namespace moe8 {

/// Call for every step start(), then stop() after the batch that is to be watched, finish()
/// when gradients and counts are complete. take() has a report after the steps that were due.
class Health {
 public:
  Health(TransformerImpl& model, const NumericsConfig& config);

  void start(int64_t step);
  void stop();
  /// Reads the counts of all MoE layers, of converted models and others: before
  /// update_expert_bias, which zeroes them.
  void finish();
  std::optional<NumericsReport> take();

  /// Texts of the warnings that the report before did not have, each with the step.
  std::vector<std::string> fresh_warnings(const NumericsReport& report);

 private:
  TransformerImpl& model_;
  NumericsConfig config_;
  int64_t step_ = 0;
  std::optional<NumericsMonitor> monitor_;
  std::optional<NumericsReport> report_;
  NumericsAlarm alarm_;
};

}  // namespace moe8
