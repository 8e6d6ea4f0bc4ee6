// SPDX-License-Identifier: BSD-3-Clause
// Tables of several runs for a terminal, as `moe8 compare` and the demo print them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

/// Losses and warnings, the first run being what the others are compared with.
/// @param columns  how wide the lines may be; 0: as wide as they are
std::string loss_table(const std::vector<RunRecord>& runs, std::optional<double> bigram_loss,
                       size_t columns = 0);

/// Speeds and memory, and below why a ratio is missing.
std::string speed_table(const std::vector<RunRecord>& runs, size_t columns = 0);

/// "mxfp8: the rates of its steps spread by 2.3 x": one for every run whose speed says little.
std::vector<std::string> uneven_runs(const std::vector<RunRecord>& runs);

/// "20", or "20 of 40" of a run that is not finished.
std::string steps_text(const RunRecord& run);

}  // namespace moe8
