// SPDX-License-Identifier: BSD-3-Clause
#include "train/model_source.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/log.h"
#include "io/tensor_pieces.h"
#include "moe8/lora.h"
#include "moe8/pretrained.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "nn/init.h"
#include "nn/lora_names.h"
#include "text/token_source.h"
#include "train/store/checkpoint.h"
#include "train/store/checkpoint_folder.h"
#include "train/store/named_tensors.h"
#include "train/store/run_folder.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModel = "model";

bool has_file(const std::string& folder, const char* name) {
  std::error_code ignored;
  return fs::is_regular_file(fs::path(folder) / name, ignored);
}

// Runs on text, of which nothing says that it was tokens.
bool trained_on_bytes(const RunConfig& run) {
  if (!run.from.empty()) return run.data.tokens == DataTokens::BYTES;
  if (run.data.tokens != DataTokens::AUTO) return run.data.tokens == DataTokens::BYTES;
  return std::ranges::none_of(run.data.files, TokenSource::says_tokens);
}

ModelSource of_run(const std::string& path, RunConfig run, std::vector<std::string> files,
                   int64_t step) {
  ModelSource source{.path = path, .step = step, .model = run.model, .files = std::move(files)};
  source.dtype = PieceReader::dtype_of(PieceReader(source.files).dtype("tok_embeddings.weight"));
  source.reads_bytes = trained_on_bytes(run);
  if (!run.from.empty() && has_file(run.from, "tokenizer.json")) source.tokenizer = run.from;
  source.run = std::move(run);
  return source;
}

// One whose checksums were looked at: they are of all bytes.
ModelSource of_good_checkpoint(const std::string& path) {
  CheckpointInfo info = read_checkpoint_info(path);
  return of_run(path, std::move(info.config), CheckpointFiles{path}.models(info.ranks),
                info.state.step);
}

ModelSource of_published(const std::string& path) {
  ModelSource source{.path = path, .model = read_pretrained_config(path)};
  source.dtype = pretrained_dtype(path);
  if (has_file(path, "tokenizer.json")) source.tokenizer = path;
  return source;
}

}  // namespace

ModelSource find_model(const std::string& path) {
  const RunFolder run{path};
  if (fs::exists(CheckpointFiles{path}.state())) {
    check_checkpoint(path);
    return of_good_checkpoint(path);
  }
  if (!fs::exists(run.config()) && has_file(path, "config.json")) return of_published(path);
  MOE8_CHECK(
      fs::exists(run.config()), kModel, path,
      "expected the folder of a run or a checkpoint, with run.toml, or of a published model, "
      "with config.json, got ",
      fs::exists(path) ? "one without" : "none");
  if (fs::exists(run.model())) return of_run(path, load_run_config(run.config()), {run.model()}, 0);
  const auto newest = CheckpointFolder(run.checkpoints()).newest_good();
  MOE8_CHECK(newest, kModel, path, "expected model.safetensors or a checkpoint, got neither yet");
  return of_good_checkpoint(newest->path);
}

ConversionReport convert_model(TransformerImpl& model, const std::vector<ConversionRule>& rules) {
  FqnToConfig keys = to_fqn_config(rules);
  if (keys.empty()) return {};
  for (const auto& parameter : model.named_parameters()) {
    const std::string& name = parameter.key();
    const bool is_adapter = name.ends_with(kLoraA) || name.ends_with(kLoraB);
    if (is_adapter) keys.emplace_back(name, std::nullopt);
  }
  ConversionReport report = quantize_(model, keys, {.unused = Unused::IGNORE});
  log_info("conversion\n" + report.to_table());
  return report;
}

std::shared_ptr<TransformerImpl> load_model(const ModelSource& source, at::ScalarType dtype,
                                            const c10::Device& device,
                                            const std::vector<ConversionRule>& rules) {
  Transformer model{nullptr};
  {
    const WithoutInit weights_come;
    model = Transformer(source.model, 0, source.files.empty() ? dtype : source.dtype);
  }
  if (source.run && source.run->lora.rank > 0) add_lora(*model, source.run->lora.options());
  if (source.files.empty()) {
    load_pretrained(*model, source.path);
  } else {
    load_into(learned_tensors(*model), PieceReader(source.files));
    if (dtype != source.dtype) cast_parameters_(*model, dtype);
  }
  if (!device.is_cpu()) model->to(device);
  model->eval();
  convert_model(*model, rules);
  return model.ptr();
}

}  // namespace moe8
