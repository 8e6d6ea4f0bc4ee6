// SPDX-License-Identifier: BSD-3-Clause
// What `moe8 eval` and `moe8 generate` share: a model, where it computes and in which precision.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "moe8/tokenizer.h"
#include "train/model_source.h"

namespace moe8 {

struct ModelOptions {
  std::string tokenizer;
  std::string device = "auto";
  std::string dtype = "auto";
};

void add_model_options(CLI::App& command, ModelOptions& options);

/// The model at `path`; --tokenizer takes the place of its own.
ModelSource source_of(const std::string& path, const ModelOptions& options);

/// What reads its text; none where its tokens are bytes, or nothing is known.
std::optional<Tokenizer> tokenizer_of(const ModelSource& source);

/// The rules of a recipe, or where none is named those that the model was trained with.
std::vector<ConversionRule> rules_of(const ModelSource& source, const std::string& recipe);

/// Of a recipe as rules_of() takes it: "bf16", or "custom" of a run with rules of its own.
std::string recipe_name(const ModelSource& source, const std::string& recipe);

at::ScalarType dtype_of(const ModelSource& source, const ModelOptions& options);
c10::Device device_of(const ModelOptions& options);

}  // namespace moe8
