// SPDX-License-Identifier: BSD-3-Clause
// The output folder of a run.
#include "train/run_folder.h"

#include <filesystem>

#include "base/check.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOp = "train";

}  // namespace

RunFolder check_run_folder(const std::string& path, Overwrite overwrite) {
  const RunFolder folder{path};
  std::error_code error;
  const bool exists = fs::exists(path, error);
  MOE8_CHECK(!exists || fs::is_directory(path, error), kOp, "output.folder",
             "expected a folder, got '", path, "', which is something else");
  for (const std::string& file :
       {folder.config(), folder.metrics(), folder.model(), folder.result()}) {
    MOE8_CHECK(overwrite == Overwrite::YES || !fs::exists(file, error), kOp, "output.folder",
               "expected a folder without a run, got '", path, "', which holds ",
               fs::path(file).filename().string(),
               ". Choose another with --out, or pass --overwrite.");
  }
  return folder;
}

RunFolder make_run_folder(const std::string& path, Overwrite overwrite) {
  const RunFolder folder = check_run_folder(path, overwrite);
  std::error_code error;
  fs::create_directories(path, error);
  MOE8_CHECK(!error, kOp, "output.folder", "expected to make the folder '", path,
             "', got: ", error.message());
  for (const std::string& file :
       {folder.config(), folder.metrics(), folder.model(), folder.result()}) {
    fs::remove(file, error);
    MOE8_CHECK(!error, kOp, "output.folder", "expected to remove '", file,
               "', got: ", error.message());
  }
  return folder;
}

}  // namespace moe8
