// SPDX-License-Identifier: BSD-3-Clause
// Writing, checking and reading one checkpoint.
#include "train/store/checkpoint.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/check.h"
#include "convert/toml_input.h"
#include "device/cuda_device.h"
#include "gemm/torch_gemm.h"
#include "io/file.h"
#include "moe8/version.h"
#include "train/agree.h"
#include "train/store/checksum.h"

namespace moe8 {
namespace {

constexpr const char* kCheckpoint = "checkpoint";
// Raised when older programs could misread what is written: those that know one rank cannot read
// pieces.
constexpr int64_t kFormat = 1, kFormatOfPieces = 2;

using Json = nlohmann::ordered_json;

// ---- state.json -------------------------------------------------------------
int64_t format_of(const CheckpointInfo& info) {
  return info.ranks == 1 ? kFormat : kFormatOfPieces;
}

Json to_json(const CheckpointInfo& info) {
  const RunState& s = info.state;
  Json json{{"format", format_of(info)},  {"step", s.step},
            {"next_batch", s.next_batch}, {"last_losses", s.last_losses},
            {"seconds", s.seconds},       {"peak_memory_bytes", s.peak_memory},
            {"text", info.text},          {"environment", info.environment}};
  if (info.ranks > 1) json["ranks"] = info.ranks;
  if (s.validation_loss) json["validation_loss"] = *s.validation_loss;
  if (s.best) json["best"] = {{"step", s.best->step}, {"validation_loss", s.best->loss}};
  return json;
}

RunState state_from(const Json& json) {
  RunState s;
  s.step = json.at("step");
  s.next_batch = json.at("next_batch");
  s.last_losses = json.at("last_losses").get<std::deque<double>>();
  s.seconds = json.at("seconds");
  s.peak_memory = json.value("peak_memory_bytes", int64_t{0});  // older ones have none
  if (json.contains("validation_loss")) s.validation_loss = json["validation_loss"].get<double>();
  if (json.contains("best")) {
    s.best = {json["best"].at("step"), json["best"].at("validation_loss")};
  }
  return s;
}

// ---- names ------------------------------------------------------------------
std::string model_name(int64_t rank, int64_t ranks) {
  return ranks == 1 ? "model.safetensors" : shard_file_name(rank);
}

std::string training_name(int64_t rank, int64_t ranks) {
  return ranks == 1
             ? "training.safetensors"
             : formatted("shard-%05lld-training.safetensors", static_cast<long long>(rank) + 1);
}

// In the order of checksums.txt.
std::vector<std::string> checked_names(int64_t ranks) {
  std::vector<std::string> names;
  for (int64_t rank = 0; rank < ranks; ++rank) names.push_back(model_name(rank, ranks));
  for (int64_t rank = 0; rank < ranks; ++rank) names.push_back(training_name(rank, ranks));
  names.insert(names.end(), {"run.toml", "state.json"});
  return names;
}

// ---- checksums.txt ----------------------------------------------------------
std::string checksum_line(const std::string& folder, const std::string& name) {
  return checksum(InputFile(kCheckpoint, folder + "/" + name)) + "  " + name;
}

int64_t count_lines(const std::string& text) {
  return std::ranges::count(text, '\n');
}

// A file of another set would be read as part of this one, by PyTorch for example.
void check_no_others(const std::string& path, const std::vector<std::string>& names) {
  namespace fs = std::filesystem;
  for (const auto& entry : fs::directory_iterator(path)) {
    const std::string name = entry.path().filename();
    MOE8_CHECK(!name.ends_with(".safetensors") || std::ranges::find(names, name) != names.end(),
               kCheckpoint, concat(path, "/", name),
               "expected only the files of checksums.txt, got one ",
               "more. Is it of another checkpoint?");
  }
}

}  // namespace

std::vector<std::string> CheckpointFiles::models(int64_t ranks) const {
  std::vector<std::string> paths;
  for (int64_t rank = 0; rank < ranks; ++rank)
    paths.push_back(path + "/" + model_name(rank, ranks));
  return paths;
}

std::vector<std::string> CheckpointFiles::trainings(int64_t ranks) const {
  std::vector<std::string> paths;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    paths.push_back(path + "/" + training_name(rank, ranks));
  }
  return paths;
}

Environment this_environment(const c10::Device& device) {
  Environment environment{{"moe8", version()},
                          {"LibTorch", TORCH_VERSION},
                          {"CPU", at::get_cpu_capability()},
                          {"products", cpu_prefers_bf16() ? "bf16" : "float32"},
                          {"threads", std::to_string(at::get_num_threads())}};
  if (device.is_cuda()) environment["GPU"] = device_name(device);
  return environment;
}

// ---- writing ----------------------------------------------------------------
namespace {

void save_part(const std::string& path, const std::vector<TensorPiece>& pieces,
               const std::map<std::string, std::string>& metadata, bool whole) {
  if (!whole) return save_pieces(path, pieces, metadata);
  NamedTensors tensors;
  for (const TensorPiece& piece : pieces) tensors.emplace_back(piece.name, piece.data);
  save_safetensors(path, tensors, metadata);
}

// Two lines of checksums.txt.
std::string write_own_part(const std::string& folder, const CheckpointInfo& info,
                           const CheckpointTensors& tensors, const Group& ranks) {
  const bool alone = ranks.size() == 1;
  const std::string model = model_name(ranks.rank(), ranks.size());
  const std::string training = training_name(ranks.rank(), ranks.size());
  const std::string step = std::to_string(info.state.step);
  save_part(folder + "/" + model, tensors.model,
            {{"recipe", info.config.training.recipe}, {"step", step}}, alone);
  save_part(folder + "/" + training, tensors.training, {}, alone);
  return checksum_line(folder, model) + "\n" + checksum_line(folder, training) + "\n";
}

// The lines of all ranks and of what the first alone writes, in the order of checked_names().
std::string write_the_rest(const CheckpointFiles& files, const CheckpointInfo& info,
                           const std::vector<std::string>& lines_of_ranks) {
  write_file(kCheckpoint, files.config(), to_toml(info.config));
  write_file(kCheckpoint, files.state(), to_json(info).dump(2) + "\n");
  std::string models, trainings;
  for (const std::string& lines : lines_of_ranks) {
    const size_t end = lines.find('\n') + 1;
    models += lines.substr(0, end);
    trainings += lines.substr(end);
  }
  return models + trainings + checksum_line(files.path, "run.toml") + "\n" +
         checksum_line(files.path, "state.json") + "\n";
}

}  // namespace

void write_checkpoint(const std::string& path, const CheckpointInfo& info,
                      const CheckpointTensors& tensors, const Group& ranks) {
  const bool is_first = ranks.rank() == 0;
  std::optional<AtomicFolder> folder;
  agree(ranks, [&] {
    if (is_first) folder.emplace(kCheckpoint, path);
  });
  const std::string partial = AtomicFolder::partial_of(path);
  const std::vector<std::string> lines =
      gather(ranks, [&] { return write_own_part(partial, info, tensors, ranks); });
  agree(ranks, [&] {
    if (!is_first) return;
    const CheckpointFiles files{partial};
    write_file(kCheckpoint, files.checksums(), write_the_rest(files, info, lines));
    folder->commit();
  });
}

// ---- reading ----------------------------------------------------------------
namespace {

int64_t ranks_of(const std::string& path) {
  const std::string file = CheckpointFiles{path}.state();
  const Json json = Json::parse(read_text_file(kCheckpoint, file), nullptr,
                                /*allow_exceptions=*/false);
  constexpr int64_t kMost = 1 << 20;
  const int64_t ranks = json.is_object() && json.contains("ranks") && json["ranks"].is_number()
                            ? json["ranks"].get<int64_t>()
                            : 1;
  return std::clamp<int64_t>(ranks, 1, kMost);
}

}  // namespace

void check_checkpoint(const std::string& path) {
  const std::string list = CheckpointFiles{path}.checksums();
  const std::string text = read_text_file(kCheckpoint, list);
  const std::vector<std::string> names = checked_names(ranks_of(path));
  std::istringstream written(text);
  for (const std::string& name : names) {
    std::string expected;
    std::getline(written, expected);
    MOE8_CHECK(expected == checksum_line(path, name), kCheckpoint, concat(path, "/", name),
               "expected the bytes that were written, but its checksum differs");
  }
  MOE8_CHECK(count_lines(text) == static_cast<int64_t>(names.size()), kCheckpoint, list,
             "expected ", names.size(), " lines, got ", count_lines(text));
  check_no_others(path, names);
}

CheckpointInfo read_checkpoint_info(const std::string& path) {
  const CheckpointFiles files{path};
  CheckpointInfo info;
  try {
    const Json json = Json::parse(read_text_file(kCheckpoint, files.state()));
    const auto format = json.at("format").get<int64_t>();
    info.ranks = json.value("ranks", int64_t{1});
    MOE8_CHECK(format == format_of(info), kCheckpoint, files.state(), "expected format ",
               format_of(info), ", got ", format, ". Another version of moe8 wrote it.");
    info.state = state_from(json);
    info.text = json.at("text").get<std::vector<std::string>>();
    info.environment = json.at("environment").get<Environment>();
  } catch (const nlohmann::json::exception& error) {
    fail(kCheckpoint, files.state(),
         std::string("expected the state of a run, got: ") + error.what());
  }
  info.config = load_run_config(files.config());
  return info;
}

}  // namespace moe8
