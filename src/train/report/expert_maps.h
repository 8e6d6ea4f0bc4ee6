// SPDX-License-Identifier: BSD-3-Clause
// How rows were spread over the experts: by layer and step, and by layer and expert at the end.
#pragma once

#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

/// A section with maps for every run that has experts; empty when none has.
std::string expert_maps(const std::vector<RunRecord>& runs);

}  // namespace moe8
