// SPDX-License-Identifier: BSD-3-Clause
// The demo: one model, one seed, one text, several recipes side by side.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "train/store/run_record.h"
#include "train/trainer.h"

namespace moe8 {

/// configs/demo.toml as it was when this program was built.
const std::string& demo_config_text();

struct DemoResult {
  std::vector<RunRecord> runs;  // the first is the baseline, bf16
  double bigram_loss = 0;       // of a byte-bigram table, on the same validation text
  std::string report;           // path of report.html
};

/// Bars that every run has to clear for the demo to succeed.
inline constexpr double kMaxDifferencePercent = 1.0;
inline constexpr double kMinGainOverBigram = 0.15;  // nats per byte

/// Trains config.model once per recipe, a step of each in turn, each in the folder
/// `config.output.folder`/RECIPE (runs of an earlier demo there are replaced), and writes
/// report.html beside them. Every run ends with the bits that it would have alone
/// (train_in_turns).
/// @throws c10::Error as train().
DemoResult run_demo(const RunConfig& config, const std::vector<std::string>& recipes,
                    const RunOptions& options);

/// The tables that the demo prints. @param columns  see run_tables.h
std::string to_table(const DemoResult& result, size_t columns = 0);

/// One sentence; `passed` says whether every run cleared both bars.
struct Verdict {
  bool passed = false;
  std::string sentence;
};
Verdict verdict(const DemoResult& result);

}  // namespace moe8
