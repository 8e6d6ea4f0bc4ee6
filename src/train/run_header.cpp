// SPDX-License-Identifier: BSD-3-Clause
#include "train/run_header.h"

#include <ATen/Parallel.h>

#include <functional>
#include <map>
#include <numeric>

#include "base/nearest.h"
#include "base/plain_text.h"
#include "device/cuda_device.h"
#include "train/config/trained_parameters.h"

namespace moe8 {
namespace {

// "1234" or "12.34 million".
std::string amount(int64_t count) {
  const auto value = static_cast<double>(count);
  if (count < 100'000) return std::to_string(count);
  return count < 1'000'000'000 ? formatted("%.2f million", value / 1e6)
                               : formatted("%.2f billion", value / 1e9);
}

std::string recipe_of(const Config& config) {
  for (const RecipeInfo& info : all_recipes()) {
    if (info.config == config) return info.name;
  }
  return "a config of its own";
}

int64_t elements_of(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// "9 weights in mxfp8_rceil, 3 in bf16": the weights of so many dimensions that products could
// read.
std::string family(const RunConfig& config, const ConversionReport& conversion, size_t dimensions) {
  const std::string plain = config.training.weights == Weights::FLOAT32 ? "float32" : "bf16";
  std::map<std::string, int64_t> weights;
  for (const ParameterShape& parameter : parameter_shapes(config.model)) {
    const bool is_table = parameter.name.starts_with("tok_embeddings");
    if (parameter.shape.size() == dimensions && !is_table) ++weights[plain];
  }
  for (const ConversionRow& row : conversion.converted()) {
    if (row.shape.size() != dimensions) continue;
    ++weights[recipe_of(*row.config)];
    if (--weights[plain] == 0) weights.erase(plain);
  }
  std::vector<std::string> parts;
  parts.reserve(weights.size());
  for (const auto& [recipe, count] : weights) {
    parts.push_back(std::to_string(count) + (parts.empty() ? " weights in " : " in ") + recipe);
  }
  return parts.empty() ? "none" : join(parts);
}

}  // namespace

std::string device_text(const c10::Device& device) {
  if (device.is_cuda()) return device_name(device);
  const int threads = at::get_num_threads();
  return "the CPU, " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

std::vector<std::string> header_of(const RunConfig& config, const ConversionReport& conversion,
                                   const c10::Device& device) {
  const ParameterCounts counts = count_parameters(config.model);
  const TrainingConfig& t = config.training;
  std::vector<std::string> lines{"  model    " + amount(counts.total) + " parameters, " +
                                     amount(counts.active) + " of them active for a token",
                                 "  steps    " + std::to_string(t.steps) + " of " +
                                     std::to_string(t.accumulation * t.batch_size * t.seq_len) +
                                     " tokens, on " + device_text(device),
                                 "  experts  " + family(config, conversion, 3),
                                 "  linears  " + family(config, conversion, 2)};
  if (config.lora.rank > 0 || !config.optimizer.frozen.empty()) {
    int64_t trained = 0;
    for (const TrainedParameter& one : trained_parameters(config)) {
      trained += elements_of(one.parameter.shape);
    }
    lines.push_back(
        "  trained  " + amount(trained) + " parameters" +
        (config.lora.rank > 0
             ? concat(" of adapters, rank ", config.lora.rank,
                      config.lora.base == LoraBase::CODES ? ", beside weights kept as codes" : "")
             : std::string(", the others are frozen")));
  }
  lines.push_back("  folder   " + config.output.folder);
  return lines;
}

}  // namespace moe8
