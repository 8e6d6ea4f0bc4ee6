// SPDX-License-Identifier: BSD-3-Clause
// How exact every product of a converted weight was, by weight and step.
#pragma once

#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

/// A section with a map for every run that has looks; empty when none has.
std::string sqnr_maps(const std::vector<RunRecord>& runs);

}  // namespace moe8
