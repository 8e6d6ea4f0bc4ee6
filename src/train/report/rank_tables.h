// SPDX-License-Identifier: BSD-3-Clause
// How the ranks of runs spent their steps: who was slowest, what they waited and sent, and how the
// tokens of experts were spread over them.
#pragma once

#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

/// A row per run that several ranks have finished; empty when there is none.
std::string rank_table(const std::vector<RunRecord>& runs, size_t columns = 0);

/// The same for the page, with a row per rank.
std::string ranks_section(const std::vector<RunRecord>& runs);

}  // namespace moe8
