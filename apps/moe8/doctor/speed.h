// SPDX-License-Identifier: BSD-3-Clause
// A quick look at how fast this machine multiplies, copies and quantizes. Benchmarks are in bench/.
#pragma once

#include <string>
#include <vector>

namespace moe8 {

struct Speed {
  std::string what;
  double value = 0;
  std::string unit;
};

struct Speeds {
  double bf16_gflops = 0;
  double float32_gflops = 0;
  std::vector<Speed> rows;  // these two and the rest
};

/// Takes about two seconds.
Speeds measure_speeds();

}  // namespace moe8
