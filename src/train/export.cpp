// SPDX-License-Identifier: BSD-3-Clause
#include "train/export.h"

#include <functional>
#include <numeric>

#include "base/check.h"
#include "io/tensor_pieces.h"
#include "moe8/lora.h"
#include "train/model_source.h"

namespace moe8 {
namespace {

constexpr const char* kExport = "export";

int64_t elements_of(const std::vector<ParameterShape>& shapes) {
  int64_t elements = 0;
  for (const ParameterShape& one : shapes) {
    elements +=
        std::accumulate(one.shape.begin(), one.shape.end(), int64_t{1}, std::multiplies<>());
  }
  return elements;
}

ExportResult export_adapter(const ModelSource& source, const std::string& to) {
  const LoraConfig& lora = source.run->lora;
  MOE8_CHECK(lora.rank > 0, kExport, "adapter", "expected a run with [lora], got ", source.path,
             ", which has no adapters. Export its model.");
  const PieceReader files(source.files);
  save_adapter(to, source.model, [&](const std::string& name) { return files.read(name); },
               {.lora = lora.options(), .base = source.run->from});
  return {source.path, source.step, elements_of(lora_shapes(source.model, lora.options()))};
}

}  // namespace

ExportResult export_run(const std::string& from, const std::string& to,
                        const ExportOptions& options) {
  const ModelSource source = find_model(from);
  MOE8_CHECK(
      source.run, kExport, from,
      "expected the folder of a run or a checkpoint, got that of a published model, which is "
      "one already");
  if (options.adapter) return export_adapter(source, to);
  const PieceReader files(source.files);
  const auto has = [&](const std::string& name) { return files.contains(name); };
  const auto read = [&](const std::string& name) { return files.read(name); };
  const LoraOptions lora = source.run->lora.options();
  save_pretrained(to, source.model,
                  [&](const std::string& name) { return merged_lora(name, lora, has, read); },
                  source.dtype,
                  {.files_from = options.tokenizer.empty() ? source.run->from : options.tokenizer,
                   .weights = options.weights});
  return {source.path, source.step, count_parameters(source.model).total};
}

}  // namespace moe8
