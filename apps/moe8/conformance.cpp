// SPDX-License-Identifier: BSD-3-Clause
// moe8 conformance DIR: this build's arithmetic against recorded cases. What a kind of case
// computes and how it is compared is in conformance/.
#include <algorithm>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"
#include "conformance/kinds.h"
#include "conformance/tables.h"
#include "device/cuda_backend.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

struct ConformanceArguments {
  std::string folder;
  std::string device = "cpu";
};

// Names come from files and may hold anything; a case must stay one line.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  return text;
}

// Prints a line per case, and counts.
class Score {
 public:
  void add(const std::string& kind, const std::string& file, const Outcome& outcome) {
    std::cout << (outcome.passed ? "ok      " : "FAILED  ") << std::left << std::setw(kKindWidth)
              << printable(kind) << "  " << std::setw(kFileWidth) << printable(file) << "  "
              << printable(outcome.measured)
              << (outcome.bar.empty() ? "" : "  (" + outcome.bar + ")") << std::endl;
    ++(outcome.passed ? passed_ : failed_);
  }

  int failed() const { return failed_; }
  void print() const { std::cout << passed_ << " passed, " << failed_ << " failed\n"; }

 private:
  static constexpr int kKindWidth = 19;
  static constexpr int kFileWidth = 52;
  int passed_ = 0;
  int failed_ = 0;
};

std::vector<fs::path> case_files(const std::string& folder) {
  std::vector<fs::path> files;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".safetensors" || extension == ".json") files.push_back(entry.path());
    }
  } catch (const fs::filesystem_error& error) {
    fail("conformance", "DIR",
         concat("expected a folder that can be read, got '", folder, "' (", error.code().message(),
                ")"));
  }
  MOE8_CHECK(!files.empty(), "conformance", "DIR", "expected *.safetensors cases in '", folder,
             "', got none");
  std::sort(files.begin(), files.end());
  return files;
}

void run_case(const fs::path& path, const at::Device& device, Score& score) {
  std::string kind = "?";
  Outcome outcome;
  try {
    const CaseFile file(path.string(), device);
    kind = file.text("kind");
    outcome = check_case(file);
  } catch (const std::exception& error) {
    outcome = {false, message_of(error), ""};
  }
  score.add(kind, path.filename().string(), outcome);
}

void run_tables(const fs::path& path, Score& score) {
  const std::string kind = "fqn_to_config";
  const std::string file = path.filename().string();
  try {
    check_tables(path.string(), [&](size_t number, const Outcome& outcome) {
      score.add(kind, concat(file, " table ", number), outcome);
    });
  } catch (const std::exception& error) {
    score.add(kind, file, {false, message_of(error), ""});
  }
}

void run_conformance(const ConformanceArguments& options) {
  const at::Device device(options.device);
  if (device.is_cuda()) {
    const std::optional<std::string> failure = load_cuda_backend();
    MOE8_CHECK(!failure, "conformance", "--device",
               "expected a device that can be used, got cuda: ", *failure);
  }
  Score score;
  for (const fs::path& path : case_files(options.folder)) {
    if (path.extension() == ".json") {
      run_tables(path, score);
    } else {
      run_case(path, device, score);
    }
  }
  score.print();
  if (score.failed() > 0) end_as_failed();
}

}  // namespace

void add_conformance_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("conformance", "Check this build's arithmetic against recorded cases.");
  const auto options = std::make_shared<ConformanceArguments>();
  command->add_option("DIR", options->folder, "Folder with *.safetensors cases and *.json tables")
      ->required()
      ->type_name("");
  command->add_option("--device", options->device, "Whose kernels to check")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->footer(
      "One line a case: ok or FAILED, kind, file, what was measured, the bar; then\n"
      "\"N passed, N failed\". A case that cannot be read or is of no known kind has failed.\n" +
      examples("moe8 conformance data/conformance"));
  command->callback([options] { run_conformance(*options); });
}

}  // namespace moe8
