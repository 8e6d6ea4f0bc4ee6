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
#include "train/expert_load.h"

namespace moe8 {

/// Call for every step start(), then stop() after the batch that is to be watched, finish()
/// when gradients and counts are complete, at the latest before the start of a step that is due.
/// take() has a report after the steps that were due.
class Health {
 public:
  /// @param last_step  is looked at in any case; 0: none is the last
  Health(TransformerImpl& model, const NumericsConfig& config, int64_t last_step = 0);

  /// Whether the numerics of this step will be looked at: finish() then comes before the next one.
  bool is_due(int64_t step) const;
  void start(int64_t step);
  void stop();
  /// @param experts  the step's rows of all MoE layers, of converted models and others
  void finish(const std::vector<ExpertTokens>& experts);
  std::optional<NumericsReport> take();

  /// Texts of the warnings that the report before did not have, each with the step.
  std::vector<std::string> fresh_warnings(const NumericsReport& report);

 private:
  TransformerImpl& model_;
  NumericsConfig config_;
  int64_t last_step_;
  int64_t step_ = 0;
  StarvedExperts starved_;
  std::optional<NumericsMonitor> monitor_;
  std::optional<NumericsReport> report_;
  NumericsAlarm alarm_;
};

}  // namespace moe8
