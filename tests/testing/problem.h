// SPDX-License-Identifier: BSD-3-Clause
// Grouped problems of the tests, and the table of accuracy bars keyed by (recipe, GEMM).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "gemm/low_precision_gemm.h"

namespace moe8::testing {

/// Of all_recipes() those of grouped configs.
std::vector<RecipeInfo> recipes_of_experts();

/// SQNR in dB that a recipe must reach against the same product in high precision.
struct AccuracyBar {
  std::string recipe;
  double out, grad_input, grad_weight;
};
/// docs/numerics.md, section 7.
const std::vector<AccuracyBar>& accuracy_bars();
const AccuracyBar& accuracy_bar(const std::string& recipe);

/// The float64 reference of a GEMM over the operands' values (src/reference/grouped_gemm.cpp).
at::Tensor reference_gemm(const GemmProblem& problem);

}  // namespace moe8::testing
