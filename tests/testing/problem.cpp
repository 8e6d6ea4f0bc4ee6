// SPDX-License-Identifier: BSD-3-Clause
#include "testing/problem.h"

#include <ATen/ATen.h>

#include "base/check.h"
#include "reference/grouped_gemm.h"
#include "testing/fill.h"

namespace moe8::testing {

std::vector<RecipeInfo> recipes_of_experts() {
  std::vector<RecipeInfo> recipes;
  for (const RecipeInfo& recipe : all_recipes()) {
    if (is_grouped(recipe.config)) recipes.push_back(recipe);
  }
  return recipes;
}

const std::vector<AccuracyBar>& accuracy_bars() {
  static const std::vector<AccuracyBar> bars = {
      {"fp8_rowwise", 27, 25, 24},
      {"mxfp8_rceil", 27, 25, 24},
      {"mxfp8_rceil_wgrad_with_hp", 27, 25, 40},
      {"mxfp8_emulated_rceil", 27, 25, 24},
      {"mxfp8_floor", 27, 25, 24},
      {"mxfp8_floor_wgrad_with_hp", 27, 25, 40},
      {"mxfp8_emulated", 27, 25, 24},
      {"mxfp8_cublas", 27, 25, 24},
      {"mxfp8_cublas_rceil", 27, 25, 24},
      {"mxfp4_emulated", 8, 8, 8},
      {"mxfp4_cutlass", 8, 8, 8},
      {"tensorwise", 25, 20, 20},
      {"rowwise", 27, 25, 24},
      {"rowwise_with_gw_hp", 27, 25, 40},
  };
  return bars;
}

const AccuracyBar& accuracy_bar(const std::string& recipe) {
  for (const AccuracyBar& bar : accuracy_bars()) {
    if (bar.recipe == recipe) return bar;
  }
  fail("accuracy_bar", "recipe", "no row for " + recipe);
}

at::Tensor reference_gemm(const GemmProblem& p) {
  const bool by_rows = p.gemm != Gemm::GRAD_WEIGHT;
  const int64_t contracted = p.gemm == Gemm::OUT ? 2 : by_rows ? 1 : 0;
  const std::optional<at::Tensor> groups = by_rows ? std::nullopt : p.groups.offs();
  const at::Tensor left =
      operand_values(p.left.source(), p.formats.left, by_rows ? 1 : 0, groups, at::kFloat);
  const at::Tensor right =
      operand_values(p.right.source(), p.formats.right, contracted, groups, at::kFloat);
  const int64_t M = left.size(0);
  const int64_t N = p.gemm == Gemm::OUT ? right.size(1) : left.size(1);
  const int64_t K = right.size(-1);
  const at::Tensor ends = p.groups.offs() ? p.groups.offs()->contiguous() : offs_of({M});
  const int64_t E = ends.numel();
  const std::vector<int64_t> sizes = p.gemm == Gemm::OUT          ? std::vector<int64_t>{M, N}
                                     : p.gemm == Gemm::GRAD_INPUT ? std::vector<int64_t>{M, K}
                                                                  : std::vector<int64_t>{E, N, K};
  const at::Tensor out = at::empty(sizes, at::kDouble);
  const reference::GroupedGemmArgs args{left.const_data_ptr<float>(),
                                        right.const_data_ptr<float>(),
                                        ends.const_data_ptr<int32_t>(),
                                        M,
                                        N,
                                        K,
                                        E,
                                        out.mutable_data_ptr<double>()};
  switch (p.gemm) {
    case Gemm::OUT:
      reference::grouped_gemm_out(args);
      break;
    case Gemm::GRAD_INPUT:
      reference::grouped_gemm_grad_input(args);
      break;
    case Gemm::GRAD_WEIGHT:
      reference::grouped_gemm_grad_weight(args);
      break;
  }
  return out;
}

}  // namespace moe8::testing
