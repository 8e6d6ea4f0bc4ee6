// SPDX-License-Identifier: BSD-3-Clause
// Tests in several real processes: the test starts its own program again, once per rank.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "moe8/parallel.h"

namespace moe8::testing {

/// How one process of a test ended.
struct EndedProcess {
  int exit_code = 0;     // of a process that ended by itself, else -1
  int signal = 0;        // that ended it, else 0
  bool is_late = false;  // it was killed after the time limit
  std::string output;    // stdout and stderr

  bool is_good() const { return exit_code == 0 && signal == 0 && !is_late; }
};

struct ProcessesOptions {
  std::chrono::seconds limit{120};  // for all of them; then they are killed
  /// When one fails the others get this long, then they are killed. They are not late by that.
  std::chrono::seconds limit_after_failure{10};
  at::DeviceType device = at::kCPU;  // of the Parallel of in_processes()
  /// Variables of each process beside those of torchrun; an empty value unsets.
  std::vector<std::pair<std::string, std::string>> environment{};
};

/// Runs `body` in `world` processes, which find the variables that torchrun sets and a store that this
/// process serves. Here it returns how they ended. There, in the same test of the same program, `body`
/// runs and the process exits: 0 when it has returned and no expectation of GoogleTest failed.
/// Call it from the body of a TEST, as often as wanted; what stands before the calls runs in each
/// process.
std::vector<EndedProcess> run_processes(int64_t world, const std::function<void()>& body,
                                        const ProcessesOptions& options = {});

/// The same for each of `worlds`, with a Parallel of the layout that `layout` says for a world; a test
/// failure with the output of each process that did not end well.
void in_processes(const std::vector<int64_t>& worlds, const std::function<void(Parallel&)>& body,
                  const std::function<ParallelLayout(int64_t world)>& layout = {},
                  const ProcessesOptions& options = {});

}  // namespace moe8::testing
