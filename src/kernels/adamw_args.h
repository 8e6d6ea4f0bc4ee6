// SPDX-License-Identifier: BSD-3-Clause
// What AdamW reads and writes of one tensor, on a CPU and in the reference. Without Torch.
#pragma once

#include <cstdint>

#include "kernels/adamw.h"

namespace moe8 {

struct AdamWArgs {
  AdamWRule rule;
  StepScalars scalars;
  FloatType grad_type, weight_type, moment_type;
  const void* grad;
  void* weight;    // float32 master or the parameter itself, updated
  BFloat16* copy;  // receives the new weight rounded to nearest; null: none
  void* first;     // moments, updated
  void* second;
};

}  // namespace moe8
