// SPDX-License-Identifier: BSD-3-Clause
// The output folder of a run.
#include "train/store/run_folder.h"

#include <array>
#include <filesystem>

#include "base/check.h"
#include "io/file.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRunFolder = "train";

// In the order in which they are removed: as long as the metrics are there, so is what says whose
// they are.
std::array<std::string, 8> parts_of(const RunFolder& folder) {
  return {folder.checkpoints(), folder.result(), folder.model(),   folder.trace(),
          folder.profile(),     folder.events(), folder.metrics(), folder.config()};
}

}  // namespace

RunFolder check_run_folder(const std::string& path, ExistingRun existing) {
  const RunFolder folder{path};
  std::error_code error;
  const bool exists = fs::exists(path, error);
  MOE8_CHECK(!exists || fs::is_directory(path, error), kRunFolder, "output.folder",
             "expected a folder, got '", path, "', which is something else");
  if (existing != ExistingRun::REFUSE) return folder;
  for (const std::string& part : parts_of(folder)) {
    MOE8_CHECK(!fs::exists(part, error), kRunFolder, "output.folder",
               "expected a folder without a run, got '", path, "', which holds ",
               fs::path(part).filename().string(),
               ". Choose another with --out, go on with --resume, or pass --overwrite.");
  }
  return folder;
}

void make_run_folder(const RunFolder& folder) {
  std::error_code error;
  fs::create_directories(folder.path, error);
  MOE8_CHECK(!error, kRunFolder, "output.folder", "expected to make the folder '", folder.path,
             "', got: ", error.message());
}

void clear_run_folder(const RunFolder& folder) {
  for (const std::string& part : parts_of(folder)) {
    const std::error_code error = discard(part);
    MOE8_CHECK(!error, kRunFolder, "output.folder", "expected to remove '", part,
               "', got: ", error.message());
  }
}

}  // namespace moe8
