// SPDX-License-Identifier: BSD-3-Clause
// Products of LibTorch that moe8 cannot test on every GPU are tried there before they are used:
// small ones whose results are known, once in a process for each device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "gemm/low_precision_gemm.h"

namespace moe8 {

/// What is tried: the products of two small groups, or of one.
struct Trial {
  const char* function;  // of LibTorch, for messages
  at::Tensor (*multiply)(const GemmProblem& problem);
  std::vector<Gemm> gemms;
  GemmFormats formats;
  bool in_groups;
  /// Whether terms that are small beside the sum so far must still count, as in float32 sums.
  bool sums_in_float32;
};

/// Nothing when every product of the trial was right on this device, else why not. The first
/// question with a function and formats makes the trial and remembers the answer; while a graph is
/// being captured it refuses until there is one.
std::optional<std::string> trial_refusal(const Trial& trial, const at::Device& device);

}  // namespace moe8
