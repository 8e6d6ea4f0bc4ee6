// SPDX-License-Identifier: BSD-3-Clause
// Which curves a page shows, from the steps of the runs.
#pragma once

#include <vector>

#include "train/report/line_chart.h"
#include "train/report/report.h"

namespace moe8 {

/// Training loss; its difference to the first run, where there are several; then smaller ones:
/// validation, gradient norm, learning rate, speed, and the busiest expert.
std::vector<LineChart> curves_of(const Report& report);

}  // namespace moe8
