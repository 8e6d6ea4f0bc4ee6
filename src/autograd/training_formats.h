// SPDX-License-Identifier: BSD-3-Clause
// What a config means: the format of every operand of the three GEMMs. One table for all recipes,
// without tensors.
#pragma once

#include "moe8/config.h"
#include "operand/operand_format.h"

namespace moe8 {

struct TrainingFormats {
  GemmFormats out;          // input x weight
  GemmFormats grad_input;   // grad_output x weight
  GemmFormats grad_weight;  // grad_output x input
  KernelPreference kernel_preference = KernelPreference::AUTO;
};

/// The rows of docs/numerics.md, sections 4 and 5.
TrainingFormats training_formats(const Config& config);

/// The dtype of a product's result: a grouped config has its own, others keep that of the input.
at::ScalarType out_dtype_of(const Config& config, at::ScalarType input);

}  // namespace moe8
