// SPDX-License-Identifier: BSD-3-Clause
// What the benchmarks share. Rows that are compared are measured alternately in one process, after
// a check that the results are right; a row's baseline and ceiling come from the same run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moe8::bench {

struct Row {
  std::string op;      // "quantize_mx rows, e4m3 rceil"
  std::string shape;   // "8192x4096 bf16"
  std::string recipe;  // or "-"
  double bytes = 0;    // read and written by an ideal implementation; 0: not a row of bandwidth
  double flops = 0;    // of the products; 0: not a row of compute
  std::function<void()> run;
  int baseline = -1;  // index of the row that this one is compared with
  int ceiling = -1;   // index of the row whose rate is the most that is possible
  int64_t calls = 1;  // of the operation that one run makes; times are of one call
  std::function<void()> prepare = nullptr;  // before each run, not timed
};

/// Runs every row alternately for `rounds` rounds after one to warm up and prints
///   op | shape | recipe | median (p10-p90) ms | GB/s or GFLOP/s | % of ceiling | x baseline
/// Arguments: --rounds N, --json FILE (rows with commit, CPU, threads and LibTorch version; in a
/// folder, a file of the program's name).
int run_table(const std::string& title, const std::vector<Row>& rows, int argc, char** argv);

/// Whether an environment variable with a list ("scout,dsv3") holds `name`; without one all are listed.
bool is_listed(const char* variable, const std::string& name);

}  // namespace moe8::bench
