// SPDX-License-Identifier: BSD-3-Clause
// How much memory a run would take, from its config alone, with the settings of moe8/memory.h at
// their defaults: on a Hopper GPU where training.device is CUDA, else on this machine's CPU. The
// formulas are docs/plan.md's; tests/train/plan/memory_plan_test.cpp compares those of a CPU with a
// small model's real bytes, tests/cuda/train_test.cpp those of a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "moe8/quantize_model.h"
#include "train/config/run_config.h"
#include "train/plan/planned_conversion.h"
#include "train/plan/step_memory.h"

namespace moe8 {

/// Bytes of one process that holds the whole model. As double: hostile sizes must not wrap around.
struct MemoryPlan {
  double weights = 0;             // what the model computes with
  double masters = 0;             // float32 copies that the optimizer steps
  double optimizer = 0;           // the moments: two of AdamW, one of Muon
  double gradients = 0;           // at most, before the step
  double weight_forms = 0;        // quantized weights, at most: between forward and backward
  double codes = 0;               // quantized weights as codes and scales; for comparison
  double saved_a_token = 0;       // see saved_for_backward (saved_activations.h)
  double recomputed_a_token = 0;  // of the largest part that backward computes again, meanwhile
  double tokens = 0;              // of one forward and backward
  StepMemory step{};              // when all this is there

  double saved() const { return (saved_a_token + recomputed_a_token) * tokens; }
  double peak() const { return step.peak(); }
};

/// The memory of a run with config.conversion(), which must fit the model.
/// @param held  over how many ranks experts and dense weights are spread, of which one is planned:
///              masters, optimizer and gradients are of all that it holds
/// @throws c10::Error as quantize_ when a rule matches nothing.
MemoryPlan plan_memory(const RunConfig& config, const ParallelConfig& held = {});

/// What one rank holds of a parameter of the model.
ParameterShape held_shape(const ParameterShape& whole, const ParallelConfig& parallel);

/// Codes and scales of one weight, quantized along its in-features (for the output) and along its
/// out-features (for the gradient of the input), in the layout of quantize_mx and quantize_float8.
double code_bytes(const Config& config, const std::vector<int64_t>& shape);

}  // namespace moe8
