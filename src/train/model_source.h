// SPDX-License-Identifier: BSD-3-Clause
// A model that lies somewhere: in the folder of a run, in one of its checkpoints, or in a folder as
// Hugging Face lays it out.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe8/quantize_model.h"
#include "moe8/transformer_config.h"
#include "train/config/run_config.h"

namespace moe8 {

class TransformerImpl;

struct ModelSource {
  std::string path{};  // the folder whose weights these are
  int64_t step = 0;    // of training; 0: of a finished run, or published
  TransformerConfig model{};
  std::optional<RunConfig> run{};        // that trained it; none of a published model
  std::vector<std::string> files{};      // with its weights; none of a published model
  at::ScalarType dtype = at::kBFloat16;  // of the weights in the files: bf16 or float32
  /// tokenizer.json, or its folder: of the model, or of that which the run began with. Empty: there is
  /// none that is known.
  std::string tokenizer{};
  bool reads_bytes = false;  // its tokens are the bytes of text
};

/// Finds the weights of a run at its end, or else those of its newest good checkpoint; of a checkpoint;
/// or of a published model. Reads no tensor.
/// @throws c10::Error naming what is missing or damaged.
ModelSource find_model(const std::string& path);

/// Converts a model as the rules say; its adapters stay as they are. What does not run in low precision
/// is not warned of: ask check_conversion().
ConversionReport convert_model(TransformerImpl& model, const std::vector<ConversionRule>& rules);

/// The model with its weights, converted as `rules` say; in evaluation.
/// @param dtype  of the weights
std::shared_ptr<TransformerImpl> load_model(const ModelSource& source, at::ScalarType dtype,
                                            const c10::Device& device,
                                            const std::vector<ConversionRule>& rules = {});

}  // namespace moe8
