// SPDX-License-Identifier: BSD-3-Clause
// A run that trains within a second, and what of its metrics must repeat.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "testing/folder.h"
#include "train/config/run_config.h"
#include "train/store/metrics.h"

namespace moe8::testing {

inline std::string tiny_text() {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "the cat sat on the mat and the dog lay on the log. ";
  return text;
}

inline RunConfig tiny_config(const TemporaryFolder& folder, const std::string& out = "run") {
  RunConfig config;
  config.model.dim = 32;
  config.model.n_layers = 2;
  config.model.n_heads = 2;
  config.model.n_kv_heads = 1;
  config.model.max_seq_len = 32;
  config.model.dense_hidden_dim = 64;
  config.model.hidden_dim = 32;
  config.model.n_experts = 4;
  config.data.files = {folder.write("text.txt", tiny_text())};
  config.optimizer.learning_rate = 1e-2;
  config.optimizer.warmup_steps = 4;
  config.training.steps = 20;
  config.training.batch_size = 4;
  config.training.seq_len = 32;
  config.training.validation_batches = 2;
  config.training.threads = 1;
  config.checkpoint.interval = 0;
  config.output.folder = folder / out;
  return config;
}

/// How many lines of metrics.jsonl are steps; other kinds do not begin so.
inline int64_t step_lines(const std::string& metrics) {
  int64_t count = 0;
  for (size_t at = 0, end = 0; (end = metrics.find('\n', at)) != std::string::npos; at = end + 1) {
    count += metrics.compare(at, 7, "{\"step\"") == 0;
  }
  return count;
}

/// Every number of a run that must not depend on how often it was killed: all but speed and memory.
inline std::vector<StepMetrics> repeatable(const std::string& metrics_file) {
  std::vector<StepMetrics> steps = read_metrics(metrics_file);
  for (StepMetrics& step : steps) {
    step.tokens_per_s = 0;
    step.tokens_per_cpu_s.reset();
    step.ms.reset();
    step.gpu_memory.reset();
    step.mfu.reset();
  }
  return steps;
}

}  // namespace moe8::testing
