// SPDX-License-Identifier: BSD-3-Clause
// From what a run left to a folder that transformers, vLLM or PEFT read.
#pragma once

#include <cstdint>
#include <string>

#include "moe8/pretrained.h"

namespace moe8 {

struct ExportOptions {
  std::string tokenizer{};  // a folder whose tokenizer's files are taken; empty: model.from, if any
  ExportedWeights weights = ExportedWeights::PLAIN;
  bool adapter = false;  // of a run with [lora]: its adapters alone, as PEFT keeps them
};

struct ExportResult {
  std::string source;  // the folder whose weights these are
  int64_t step = 0;    // 0: those of the finished run
  int64_t parameters = 0;
};

/// Writes the weights of a run as save_pretrained() does, adapters merged, or as save_adapter().
/// @param from  a run's folder, of which the weights at its end are taken, or else its newest good
///              checkpoint; or a checkpoint
/// @param to    must not exist
/// @throws c10::Error naming what is missing or damaged, or what no family can say.
ExportResult export_run(const std::string& from, const std::string& to,
                        const ExportOptions& options = {});

}  // namespace moe8
