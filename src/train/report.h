// SPDX-License-Identifier: BSD-3-Clause
// report.html of the demo: one self-contained page.
#pragma once

#include <string>

#include "train/demo.h"

namespace moe8 {

/// Reads metrics.jsonl of every run and writes the page: a table, loss curves of all recipes on one
/// chart, the resolved config. No scripts, no network; light and dark by the reader's setting.
void write_report(const DemoResult& result, const std::string& path);

/// Each value replaced by the mean of it and what lies at most `radius` before or after.
std::vector<double> smoothed(const std::vector<double>& values, size_t radius);

}  // namespace moe8
