// SPDX-License-Identifier: BSD-3-Clause
// Profiles some steps of a run: a table of where their time goes, and a trace.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>

#include "train/profile/profiler.h"
#include "train/progress.h"
#include "train/store/run_folder.h"

namespace moe8 {

/// After kWarmUp steps, `steps` are recorded for the table, then one more for the trace, whose
/// recording slows the host down. Call before() and after() around every step.
class StepProfile {
 public:
  static constexpr int64_t kWarmUp = 5;

  StepProfile(const c10::Device& device, int64_t steps) : device_(device), steps_(steps) {}

  /// How long a step took that was not recorded.
  void took(int64_t step, double seconds) {
    if (step < kWarmUp) unrecorded_ms_ = 1e3 * seconds;
  }
  /// @param step  0 is the first of this process
  void before(int64_t step);
  /// Prints the table and writes it, and the trace, into the folder when they are complete.
  /// @return whether a recording has ended. @throws c10::Error on a failure to write.
  bool after(const RunFolder& folder, Progress& progress);

 private:
  c10::Device device_;
  int64_t steps_;
  int64_t step_ = 0;
  double unrecorded_ms_ = 0;  // of the last step before
  std::optional<Profiler> profiler_;
};

}  // namespace moe8
