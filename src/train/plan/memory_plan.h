// SPDX-License-Identifier: BSD-3-Clause
// How much memory a run would take, from its config alone, with the settings of moe8/memory.h at
// their defaults: on a Hopper GPU where training.device is CUDA, else on this machine's CPU. The
// formulas are docs/plan.md's; tests/train/plan/memory_plan_test.cpp compares those of a CPU with a
// small model's real bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe8/quantize_model.h"
#include "train/config/run_config.h"

namespace moe8 {

/// Something that autograd keeps from forward to backward.
struct SavedTensor {
  std::string what;
  double bytes = 0;  // a token
};

/// What one forward pass and its loss keep for each token, summed over the layers: the tensors that
/// LibTorch 2.11 and moe8 save on this CPU. A few bytes that do not depend on the tokens are left
/// out.
/// @param tensor  ranks of a tensor group: then for each token of one rank, of which every product
///                of a part of a weight sees those of the others as well
/// @throws c10::Error as quantize_.
std::vector<SavedTensor> saved_for_backward(const RunConfig& config, int64_t tensor = 1);

/// Bytes of one process that holds the whole model. As double: hostile sizes must not wrap around.
struct MemoryPlan {
  double weights = 0;             // what the model computes with
  double masters = 0;             // float32 copies that the optimizer steps
  double optimizer = 0;           // the moments: two of AdamW, one of Muon
  double gradients = 0;           // at most, before the step
  double weight_forms = 0;        // quantized weights that are kept beside all this (moe8/memory.h)
  double waiting_forms = 0;       // those and what lies where gradients will; not in total()
  double codes = 0;               // quantized weights as codes and scales; not in total()
  double saved_a_token = 0;       // see saved_for_backward
  double recomputed_a_token = 0;  // of the largest part that backward computes again, meanwhile
  double tokens = 0;              // of one forward and backward
  double saved() const { return (saved_a_token + recomputed_a_token) * tokens; }
  double total() const {
    return weights + masters + optimizer + gradients + weight_forms + saved();
  }
};

/// The memory of a run with config.conversion(), which must fit the model.
/// @param held  over how many ranks experts and dense weights are spread, of which one is planned:
///              masters, optimizer and gradients are of all that it holds
/// @throws c10::Error as quantize_ when a rule matches nothing.
MemoryPlan plan_memory(const RunConfig& config, const ParallelConfig& held = {});

/// What one rank holds of a parameter of the model.
ParameterShape held_shape(const ParameterShape& whole, const ParallelConfig& parallel);

/// What quantize_ would do to the model of `config`, without making it.
/// @throws c10::Error as quantize_.
ConversionReport plan_conversion(const RunConfig& config);

/// Codes and scales of one weight, quantized along its in-features (for the output) and along its
/// out-features (for the gradient of the input), in the layout of quantize_mx and quantize_float8.
double code_bytes(const Config& config, const std::vector<int64_t>& shape);

}  // namespace moe8
