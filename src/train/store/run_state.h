// SPDX-License-Identifier: BSD-3-Clause
// What a run carries from step to step besides its tensors.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

namespace moe8 {

struct BestValidation {
  int64_t step = 0;
  double loss = 0;

  bool operator==(const BestValidation&) const = default;
};

struct RunState {
  int64_t step = 0;                // the last one done; 0: none
  int64_t next_batch = 0;          // position in the training data, see TextData::train_batch
  std::deque<double> last_losses;  // of the last steps, see kLastSteps
  std::optional<double> validation_loss;  // the last one measured
  std::optional<BestValidation> best;
  double seconds = 0;       // of everything, up to the last time that it was written down
  int64_t peak_memory = 0;  // bytes, the most of all processes of the run so far

  bool operator==(const RunState&) const = default;
};

}  // namespace moe8
