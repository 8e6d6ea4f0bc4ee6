// SPDX-License-Identifier: BSD-3-Clause
#include "train/export.h"

#include "base/check.h"
#include "io/tensor_pieces.h"
#include "moe8/lora.h"
#include "moe8/pretrained.h"
#include "train/model_source.h"

namespace moe8 {

ExportResult export_run(const std::string& from, const std::string& to,
                        const std::string& tokenizer) {
  const ModelSource source = find_model(from);
  MOE8_CHECK(
      source.run, "export", from,
      "expected the folder of a run or a checkpoint, got that of a published model, which is "
      "one already");
  const PieceReader files(source.files);
  SavePretrainedOptions options;
  options.files_from = tokenizer.empty() ? source.run->from : tokenizer;
  const auto has = [&](const std::string& name) { return files.contains(name); };
  const auto read = [&](const std::string& name) { return files.read(name); };
  const LoraOptions lora = source.run->lora.options();
  save_pretrained(
      to, source.model, [&](const std::string& name) { return merged_lora(name, lora, has, read); },
      source.dtype, options);
  return {source.path, source.step, count_parameters(source.model).total};
}

}  // namespace moe8
