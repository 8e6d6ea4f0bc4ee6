// SPDX-License-Identifier: BSD-3-Clause
// The output folder of a run: what lies in it, and that no run overwrites another unasked.
#pragma once

#include <string>

namespace moe8 {

struct RunFolder {
  std::string path;

  std::string config() const { return path + "/run.toml"; }
  std::string metrics() const { return path + "/metrics.jsonl"; }
  std::string model() const { return path + "/model.safetensors"; }
  std::string result() const { return path + "/result.json"; }
};

enum class Overwrite { NO, YES };

/// Touches nothing. @throws c10::Error when the path is taken by something that is not a folder, or
/// holds a run and overwriting was not asked for.
RunFolder check_run_folder(const std::string& path, Overwrite overwrite);

/// Checks, makes the folder, and removes the four files of an earlier run, nothing else.
RunFolder make_run_folder(const std::string& path, Overwrite overwrite);

}  // namespace moe8
