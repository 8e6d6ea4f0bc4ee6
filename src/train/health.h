// SPDX-License-Identifier: BSD-3-Clause
// The health of a run: when its numerics are looked at, and whose experts got how much. What is
// looked at: src/numerics/.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe8/numerics.h"
#include "moe8/transformer.h"
#include "train/config/run_config.h"
#include "train/expert_load.h"

namespace moe8 {

/// What was seen at a step.
struct Look {
  int64_t step;
  NumericsReport report;
  std::string json;  // report.to_json(), which takes longer than a small model's step
};

/// Call for every step start(), then stop() after the batch that is to be watched, finish()
/// when gradients and counts are complete, at the latest before the start of a step that is due.
/// take() has the look at a step that was due, on a GPU perhaps some steps later.
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
  /// @param waits  else nothing while the look is still being measured
  std::optional<Look> take(bool waits);

  /// Texts of the warnings that the look before did not have, each with the step.
  std::vector<std::string> fresh_warnings(const Look& look);

 private:
  /// Between finish() and take().
  struct Pending {
    std::unique_ptr<NumericsMonitor> monitor;  // outlives the look
    std::future<Look> look;
  };

  TransformerImpl& model_;
  NumericsConfig config_;
  int64_t last_step_;
  int64_t step_ = 0;
  StarvedExperts starved_;
  std::unique_ptr<NumericsMonitor> monitor_;
  std::optional<Pending> pending_;
  NumericsAlarm alarm_;
};

}  // namespace moe8
