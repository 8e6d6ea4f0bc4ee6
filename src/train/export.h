// SPDX-License-Identifier: BSD-3-Clause
// From what a run left to a folder that transformers reads.
#pragma once

#include <cstdint>
#include <string>

namespace moe8 {

struct ExportResult {
  std::string source;  // the folder whose weights these are
  int64_t step = 0;    // 0: those of the finished run
  int64_t parameters = 0;
};

/// Writes the weights of a run as save_pretrained() does.
/// @param from  a run's folder, of which the weights at its end are taken, or else its newest good
///              checkpoint; or a checkpoint
/// @param to    must not exist
/// @param tokenizer  a folder whose tokenizer's files are taken; empty: that of model.from, if there
/// @throws c10::Error naming what is missing or damaged, or what no family can say.
ExportResult export_run(const std::string& from, const std::string& to,
                        const std::string& tokenizer = "");

}  // namespace moe8
