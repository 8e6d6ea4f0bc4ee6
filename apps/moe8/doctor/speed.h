// SPDX-License-Identifier: BSD-3-Clause
// A quick look at how fast this machine multiplies, copies and quantizes. Benchmarks are in bench/.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

namespace moe8 {

struct MeasuredSpeed {
  std::string what;
  double value = 0;
  std::string unit;
};

struct Speeds {
  double bf16_gflops = 0;
  double float32_gflops = 0;
  std::vector<MeasuredSpeed> rows;  // these two and the rest
};

/// Of the CPU. Takes about two seconds.
Speeds measure_speeds();

/// Of a GPU: products in bf16 and in moe8's FP8 and MXFP8, quantizing included. Takes less than two
/// seconds. @throws c10::Error when moe8 or LibTorch cannot compute there.
std::vector<MeasuredSpeed> measure_gpu(const at::Device& gpu);

}  // namespace moe8
