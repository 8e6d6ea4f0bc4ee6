// SPDX-License-Identifier: BSD-3-Clause
#include "train/export.h"

#include <filesystem>
#include <vector>

#include "base/check.h"
#include "io/tensor_pieces.h"
#include "moe8/pretrained.h"
#include "train/store/checkpoint.h"
#include "train/store/checkpoint_folder.h"
#include "train/store/run_folder.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExport = "export";

struct Source {
  RunConfig config;
  std::vector<std::string> files;
  ExportResult result;
};

Source checkpoint_at(const std::string& path) {
  check_checkpoint(path);
  const CheckpointInfo info = read_checkpoint_info(path);
  return {info.config, CheckpointFiles{path}.models(info.ranks), {path, info.state.step}};
}

Source source_at(const std::string& path) {
  const RunFolder run{path};
  if (fs::exists(CheckpointFiles{path}.state())) return checkpoint_at(path);
  MOE8_CHECK(fs::exists(run.config()), kExport, path,
             "expected the folder of a run or a checkpoint, with run.toml, got ",
             fs::exists(path) ? "one without" : "none");
  if (fs::exists(run.model())) return {load_run_config(run.config()), {run.model()}, {path}};
  const auto newest = CheckpointFolder(run.checkpoints()).newest_good();
  MOE8_CHECK(newest, kExport, path, "expected model.safetensors or a checkpoint, got neither yet");
  return checkpoint_at(newest->path);
}

}  // namespace

ExportResult export_run(const std::string& from, const std::string& to,
                        const std::string& tokenizer) {
  Source source = source_at(from);
  const PieceReader files(source.files);
  SavePretrainedOptions options;
  options.files_from = tokenizer.empty() ? source.config.from : tokenizer;
  const at::ScalarType dtype = PieceReader::dtype_of(files.dtype("tok_embeddings.weight"));
  save_pretrained(
      to, source.config.model, [&](const std::string& name) { return files.read(name); }, dtype,
      options);
  source.result.parameters = count_parameters(source.config.model).total;
  return source.result;
}

}  // namespace moe8
