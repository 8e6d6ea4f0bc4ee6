// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl, written and read.
#include "train/metrics.h"

#include <nlohmann/json.hpp>

#include "base/check.h"

namespace moe8 {

MetricsFile::MetricsFile(const std::string& path) : path_(path), out_(path, std::ios::trunc) {
  MOE8_CHECK(out_.is_open(), "metrics", "file", "expected a writable file, got '", path, "'");
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
  out_ << line.dump() << std::endl;
  MOE8_CHECK(out_.good(), "metrics", "file", "expected '", path_,
             "' to take a line, got an error. "
             "Is the disk full?");
}

std::vector<StepMetrics> read_metrics(const std::string& path) {
  std::ifstream in(path);
  MOE8_CHECK(in.is_open(), "metrics", "file", "expected a readable file, got '", path, "'");
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
      fail("metrics", "file",
           c10::str("expected one step a line, got at ", path, ":", number, ": ", error.what()));
    }
  }
  return all;
}

}  // namespace moe8
