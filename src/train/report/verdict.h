// SPDX-License-Identifier: BSD-3-Clause
// What the losses of a run say when they are held against those of another one, and how sure that
// is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

/// The mean of what the training losses of two runs differ by, step by step, over the last quarter
/// of the steps that both have. `margin` is that of 95 % confidence, from the means of ten
/// stretches, as neighbouring steps are alike. It knows the noise of these two runs only: others,
/// of another seed, may lie further apart.
struct LossDifference {
  int64_t first_step = 0;  // of the steps that count
  int64_t last_step = 0;
  double mean = 0;    // nats
  double margin = 0;  // nats
  double level = 0;   // the mean loss of the first run over these steps

  bool within_noise() const { return mean >= -margin && mean <= margin; }
  double percent() const { return 100 * mean / level; }
  double margin_percent() const { return 100 * margin / level; }
};

/// Nothing when there are too few common steps.
std::optional<LossDifference> loss_difference(const RunRecord& run, const RunRecord& first);

/// Beyond so many percent of margin nothing is called "within noise": there is too much of it.
inline constexpr double kMaxMarginPercent = 0.5;

/// Settings in which two runs differ and that may change losses, the recipe aside: with any of
/// them a difference says nothing about recipes.
std::vector<std::string> other_differences(const RunRecord& run, const RunRecord& first);

/// For people: one sentence above all, and a line of evidence for every run but the first.
struct ReportVerdict {
  std::string sentence;
  std::vector<std::string> evidence;
};
ReportVerdict verdict_of(const std::vector<RunRecord>& runs);

}  // namespace moe8
