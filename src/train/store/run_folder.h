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
  std::string checkpoints() const { return path + "/checkpoints"; }
  std::string lock() const { return path + "/run.lock"; }
  std::string trace() const { return path + "/trace.json"; }
  std::string events() const { return path + "/tensorboard"; }
  std::string profile() const { return path + "/profile.txt"; }
};

/// What to do with a run that the folder holds already.
enum class ExistingRun { REFUSE, REPLACE, RESUME };

/// Touches nothing. @throws c10::Error when the path is taken by something that is not a folder, or
/// holds a run that is to be refused.
RunFolder check_run_folder(const std::string& path, ExistingRun existing);

/// Makes the folder unless it is there. @throws c10::Error when it cannot.
void make_run_folder(const RunFolder& folder);

/// Removes an earlier run, nothing else. Whenever it is interrupted, what remains is nothing or a
/// run that can be resumed. The caller holds the lock.
void clear_run_folder(const RunFolder& folder);

}  // namespace moe8
