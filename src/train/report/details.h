// SPDX-License-Identifier: BSD-3-Clause
// The end of the page: warnings, where the runs come from, and their configs side by side.
#pragma once

#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

std::string warnings_section(const std::vector<RunRecord>& runs);
std::string origins_section(const std::vector<RunRecord>& runs);
std::string configs_section(const std::vector<RunRecord>& runs);

}  // namespace moe8
