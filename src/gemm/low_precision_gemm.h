// SPDX-License-Identifier: BSD-3-Clause
// The three GEMMs of a (grouped) linear layer with quantized operands, and the list from which the
// kernel of each is chosen. MOE8_LOG=dispatch prints the winner and why the others refused.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gemm/observer.h"
#include "kernels/gemm.h"
#include "moe8/config.h"
#include "operand/operand.h"

namespace moe8 {

struct GemmProblem {
  Gemm gemm;
  Operand left;
  Operand right;
  TokenGroups groups;
  GemmFormats formats;
  at::ScalarType out_dtype;
  KernelPreference kernel_preference = KernelPreference::AUTO;
  WeightId weight = {};  // set while numerics_observed()
  /// Launched right after a product that writes none of the operands: a GPU may run the end of that
  /// one and the beginning of this one side by side.
  bool follows_unrelated = false;
  /// GRAD_INPUT: FormKey::from_row_codes of the weight, where OUT reads it in the same format.
  bool weight_from_row_codes = false;

  std::string describe() const;
  /// The forms of the operands that a kernel reads, given how it wants them encoded.
  FormKey left_key(Encoding encoding) const;
  FormKey right_key(Encoding encoding) const;
};

/// One way to compute a GemmProblem.
struct GemmKernel {
  const char* name;
  Encoding encoding;  // of both operands
  /// Nothing when it can, else why not. Asks for nothing but sizes, dtypes, devices and formats.
  std::optional<std::string> (*refusal)(const GemmProblem& problem);
  at::Tensor (*launch)(const GemmProblem& problem);
  /// GRAD_WEIGHT, the choice not depending on out_dtype: sum = sum + product in one pass, with the
  /// bits of adding what launch() gives in float32. Null where it has no such kernel.
  void (*add)(const GemmProblem& problem, const at::Tensor& sum) = nullptr;
};

/// Every kernel of this build in the order of preference; the first that does not refuse runs.
const std::vector<GemmKernel>& gemm_kernels();

/// The kernel for a problem, whose operands need not exist yet.
/// @throws c10::Error when every kernel refuses, with the reasons.
const GemmKernel& choose_gemm_kernel(const GemmProblem& problem);

/// Quantizes both operands along the contracted axis and multiplies; float32 accumulation, rounded
/// once to out_dtype. Rows in no group are zero; an empty group's GRAD_WEIGHT is zero.
/// Arguments are checked by src/ops; this trusts them. Deterministic.
at::Tensor low_precision_gemm(const GemmProblem& problem);

/// GRAD_WEIGHT: sum = sum + product in float32. The product of a kernel that adds is rounded to
/// float32, of others to out_dtype as ever. The same bits whether anybody observes or not.
/// @param sum  float32 (E, N, K), contiguous; undefined: the product becomes the sum
void add_low_precision_gemm(GemmProblem problem, at::Tensor& sum);

}  // namespace moe8
