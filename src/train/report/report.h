// SPDX-License-Identifier: BSD-3-Clause
// report.html: one self-contained page about one or several runs. `moe8 compare` and the demo
// write it from the files of the runs; nothing on it is known to them alone.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/store/run_record.h"

namespace moe8 {

struct Report {
  std::string title{};
  std::string introduction{};  // plain text, a sentence or two
  std::vector<RunRecord> runs{};
  std::optional<double> bigram_loss{};  // of a byte-bigram table on the same validation text
};

/// A verdict; a card for every run and the table; curves of losses, of their differences to the
/// first run, of validation, gradient norm, learning rate, tokens/s and expert load; maps of the
/// load by layer and step and of SQNR by weight and step; warnings; origin and config of every run.
/// One file without anything from outside; light and dark by the reader's setting; readable on a
/// phone, and without its script, which adds values under the pointer, zoom and other axes
/// (docs/decisions/023-a-page-with-a-script.md). Replaces an older page as a whole.
/// @throws c10::Error without runs or on a failure to write.
void write_report(const Report& report, const std::string& path);

/// What write_report writes.
std::string report_html(const Report& report);

}  // namespace moe8
