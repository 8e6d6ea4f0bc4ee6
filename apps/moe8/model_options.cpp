// SPDX-License-Identifier: BSD-3-Clause
#include "model_options.h"

#include "train/config/recipe_rules.h"
#include "train/training_device.h"

namespace moe8 {

void add_model_options(CLI::App& command, ModelOptions& options) {
  command
      .add_option("--tokenizer", options.tokenizer,
                  "tokenizer.json or its folder, where it does not lie beside the model")
      ->type_name("FILE");
  command.add_option("--device", options.device, "Where to compute")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--dtype", options.dtype, "Of the weights; auto: as in the files")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "bf16", "float32"}));
}

ModelSource source_of(const std::string& path, const ModelOptions& options) {
  ModelSource source = find_model(path);
  if (!options.tokenizer.empty()) {
    source.tokenizer = options.tokenizer;
    source.reads_bytes = false;
  }
  return source;
}

std::optional<Tokenizer> tokenizer_of(const ModelSource& source) {
  if (source.tokenizer.empty()) return std::nullopt;
  return Tokenizer(source.tokenizer);
}

std::vector<ConversionRule> rules_of(const ModelSource& source, const std::string& recipe) {
  if (!recipe.empty()) return recipe_rules(recipe);
  return source.run ? source.run->conversion() : std::vector<ConversionRule>{};
}

std::string recipe_name(const ModelSource& source, const std::string& recipe) {
  if (!recipe.empty()) return recipe;
  return source.run ? source.run->training.recipe : "bf16";
}

at::ScalarType dtype_of(const ModelSource& source, const ModelOptions& options) {
  if (options.dtype == "auto") return source.dtype;
  return options.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
}

c10::Device device_of(const ModelOptions& options) {
  if (options.device == "auto") return training_device(TrainingDevice::AUTO);
  return training_device(options.device == "cuda" ? TrainingDevice::CUDA : TrainingDevice::CPU);
}

}  // namespace moe8
