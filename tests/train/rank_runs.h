// SPDX-License-Identifier: BSD-3-Clause
// Small runs of several processes, for tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/plain_text.h"
#include "testing/processes.h"
#include "train/store/run_folder.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8::testing {

inline constexpr const char* kFolderVariable = "MOE8_TEST_FOLDER";

// Of this test in all of its processes: the one that starts the others makes it.
class CommonFolder {
 public:
  CommonFolder() {
    if (const char* const given = std::getenv(kFolderVariable)) path_ = given;
  }
  std::string path() const { return path_.empty() ? own_ / "" : path_; }
  bool is_parent() const { return path_.empty(); }
  ProcessesOptions options() const {
    ProcessesOptions options;
    options.environment = {{kFolderVariable, path()}};
    return options;
  }

 private:
  TemporaryFolder own_;
  std::string path_;
};

// Four batches a step: whole ones for 1, 2 and 4 ranks.
inline RunConfig config_of(const CommonFolder& folder, const std::string& name,
                           const std::string& recipe = "bf16") {
  static const TemporaryFolder text;
  RunConfig config = tiny_config(text);
  config.output.folder = folder.path() + name;
  config.training.recipe = recipe;
  config.training.steps = 6;
  config.training.batch_size = 2;
  config.training.accumulation = 4;
  config.training.validation_interval = 3;
  config.training.validation_batches = 3;
  config.numerics.interval = 2;
  config.checkpoint.interval = 2;
  config.checkpoint.keep = 4;
  return config;
}

// Four heads, which four ranks can share.
inline RunConfig config_of_heads(const CommonFolder& folder, const std::string& name,
                                 const std::string& recipe) {
  RunConfig config = config_of(folder, name, recipe);
  config.model.n_heads = config.model.n_kv_heads = 4;
  return config;
}

// A run that goes on where it stopped; an error is printed as the command does.
inline void go_on(const RunConfig& config, RunOptions options = {}) {
  options.existing = ExistingRun::RESUME;
  try {
    train(config, options);
  } catch (const OthersError&) {
    ::_exit(1);
  } catch (const std::exception& error) {
    std::cerr << "moe8: " << message_of(error) << std::endl;
    ::_exit(1);
  }
}

inline RunOptions impatient() {
  RunOptions options;
  options.watch = {std::chrono::milliseconds(100), std::chrono::seconds(3)};
  return options;
}

// What follows is for the process that started the others.
inline void expect_good(const std::vector<EndedProcess>& ended) {
  for (const EndedProcess& process : ended) EXPECT_TRUE(process.is_good()) << process.output;
}

inline std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void expect_same_run(const RunConfig& one, const RunConfig& several) {
  if (launch_from_environment().world > 1) return;
  const RunFolder a{one.output.folder}, b{several.output.folder};
  const auto expected = repeatable(a.metrics()), got = repeatable(b.metrics());
  ASSERT_EQ(expected.size(), got.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(expected[i], got[i]) << "step " << i + 1;
  EXPECT_TRUE(bytes_of(a.model()) == bytes_of(b.model()));
}

using Metrics = std::vector<StepMetrics>;

inline std::pair<Metrics, Metrics> metrics_of(const RunConfig& one, const RunConfig& several) {
  return {repeatable(RunFolder{one.output.folder}.metrics()),
          repeatable(RunFolder{several.output.folder}.metrics())};
}

// Step by step, as what is summed in another order comes out.
inline void expect_near(const Metrics& a, const Metrics& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    SCOPED_TRACE(concat("step ", i + 1));
    EXPECT_NEAR(a[i].loss, b[i].loss, 0.02 * a[i].loss);
    EXPECT_NEAR(a[i].grad_norm, b[i].grad_norm, 0.1 * a[i].grad_norm);
    if (a[i].validation_loss) {
      EXPECT_NEAR(*a[i].validation_loss, *b[i].validation_loss, 0.02 * *a[i].validation_loss);
    }
  }
}

}  // namespace moe8::testing
