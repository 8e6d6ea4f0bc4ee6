// SPDX-License-Identifier: BSD-3-Clause
// Writing, checking and reading one checkpoint.
#include "train/store/checkpoint.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <array>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/check.h"
#include "convert/toml_input.h"
#include "device/cuda_device.h"
#include "gemm/torch_gemm.h"
#include "io/file.h"
#include "moe8/version.h"
#include "train/store/checksum.h"

namespace moe8 {
namespace {

constexpr const char* kCheckpoint = "checkpoint";
constexpr int64_t kFormat = 1;  // raised when older programs could misread what is written
constexpr std::array kChecked{"model.safetensors", "training.safetensors", "run.toml",
                              "state.json"};

using Json = nlohmann::ordered_json;

// ---- state.json -------------------------------------------------------------
Json to_json(const CheckpointInfo& info) {
  const RunState& s = info.state;
  Json json{{"format", kFormat},          {"step", s.step},
            {"next_batch", s.next_batch}, {"last_losses", s.last_losses},
            {"seconds", s.seconds},       {"peak_memory_bytes", s.peak_memory},
            {"text", info.text},          {"environment", info.environment}};
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

// ---- checksums.txt ----------------------------------------------------------
std::string checksums_of(const std::string& folder) {
  std::string text;
  for (const char* name : kChecked) {
    text += checksum(InputFile(kCheckpoint, folder + "/" + name)) + "  " + name + "\n";
  }
  return text;
}

}  // namespace

Environment this_environment(const c10::Device& device) {
  Environment environment{{"moe8", version()},
                          {"LibTorch", TORCH_VERSION},
                          {"CPU", at::get_cpu_capability()},
                          {"products", cpu_prefers_bf16() ? "bf16" : "float32"},
                          {"threads", std::to_string(at::get_num_threads())}};
  if (device.is_cuda()) environment["GPU"] = device_name(device);
  return environment;
}

void write_checkpoint(const std::string& path, const CheckpointInfo& info,
                      const CheckpointTensors& tensors) {
  AtomicFolder folder(kCheckpoint, path);
  const CheckpointFiles files{folder.partial()};
  save_safetensors(files.model(), tensors.model,
                   {{"format", "pt"},
                    {"recipe", info.config.training.recipe},
                    {"step", std::to_string(info.state.step)}});
  save_safetensors(files.training(), tensors.training);
  write_file(kCheckpoint, files.config(), to_toml(info.config));
  write_file(kCheckpoint, files.state(), to_json(info).dump(2) + "\n");
  write_file(kCheckpoint, files.checksums(), checksums_of(folder.partial()));
  folder.commit();
}

void check_checkpoint(const std::string& path) {
  std::istringstream written(read_text_file(kCheckpoint, CheckpointFiles{path}.checksums()));
  std::istringstream found(checksums_of(path));
  for (const char* name : kChecked) {
    std::string expected, got;
    std::getline(written, expected);
    std::getline(found, got);
    MOE8_CHECK(expected == got, kCheckpoint, path + "/" + name,
               "expected the bytes that were written, but its checksum differs");
  }
  MOE8_CHECK(written.peek() == std::istringstream::traits_type::eof(), kCheckpoint,
             CheckpointFiles{path}.checksums(), "expected ", kChecked.size(), " lines, got more");
}

CheckpointInfo read_checkpoint_info(const std::string& path) {
  const CheckpointFiles files{path};
  CheckpointInfo info;
  try {
    const Json json = Json::parse(read_text_file(kCheckpoint, files.state()));
    const auto format = json.at("format").get<int64_t>();
    MOE8_CHECK(format == kFormat, kCheckpoint, files.state(), "expected format ", kFormat, ", got ",
               format, ". Another version of moe8 wrote it.");
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
