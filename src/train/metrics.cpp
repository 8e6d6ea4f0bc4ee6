// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl, written and read.
#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/check.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "metrics";

[[noreturn]] void fail_to_write(const std::string& path, int error) {
  fail(kOp, path,
       c10::str("expected a writable file, got: ", std::generic_category().message(error)));
}

// Where the lines of the steps up to `last_step` end.
uint64_t end_of_step(const std::string& path, int64_t last_step) {
  std::ifstream in(path, std::ios::binary);
  uint64_t end = 0;
  int64_t steps = 0;
  for (std::string text; std::getline(in, text) && !in.eof(); end += text.size() + 1) {
    const auto line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) break;
    const auto step = line["step"].get<int64_t>();
    if (step > last_step) break;
    if (line.contains("kind")) continue;
    if (step != steps + 1) break;
    steps = step;
  }
  MOE8_CHECK(steps == last_step, kOp, path, "expected the lines of steps 1 to ", last_step,
             ", as the checkpoint was made after them, got ", steps,
             ". Put the file back as it was.");
  return end;
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, int64_t last_step) : path_(path) {
  const uint64_t end = last_step == 0 ? 0 : end_of_step(path, last_step);
  fd_ = Descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (fd_.get() < 0 || ::ftruncate(fd_.get(), static_cast<off_t>(end)) != 0) {
    fail_to_write(path, errno);
  }
}

void MetricsFile::sync() {
  if (::fsync(fd_.get()) != 0) fail_to_write(path_, errno);
}

void MetricsFile::write(const StepMetrics& m) {
  nlohmann::ordered_json line{{"step", m.step},
                              {"loss", m.loss},
                              {"lr", m.lr},
                              {"grad_norm", m.grad_norm},
                              {"tokens_per_s", m.tokens_per_s},
                              {"expert_load_min", m.expert_load_min},
                              {"expert_load_max", m.expert_load_max}};
  if (m.validation_loss) line["validation_loss"] = *m.validation_loss;
  const std::string text = line.dump() + '\n';
  write_all(kOp, path_, fd_, text.data(), text.size());
}

std::vector<StepMetrics> read_metrics(const std::string& path) {
  std::ifstream in(path);
  MOE8_CHECK(in.is_open(), kOp, "file", "expected a readable file, got '", path, "'");
  std::vector<StepMetrics> all;
  int64_t number = 0;
  for (std::string text; std::getline(in, text);) {
    ++number;
    try {
      const auto line = nlohmann::json::parse(text);
      if (line.contains("kind")) continue;  // not a step: see metrics.h
      StepMetrics m{line.at("step"),
                    line.at("loss"),
                    line.at("lr"),
                    line.at("grad_norm"),
                    line.at("tokens_per_s"),
                    line.at("expert_load_min"),
                    line.at("expert_load_max"),
                    std::nullopt};
      if (line.contains("validation_loss")) m.validation_loss = line.at("validation_loss");
      all.push_back(m);
    } catch (const nlohmann::json::exception& error) {
      fail(kOp, "file",
           c10::str("expected one step a line, got at ", path, ":", number, ": ", error.what()));
    }
  }
  return all;
}

}  // namespace moe8
