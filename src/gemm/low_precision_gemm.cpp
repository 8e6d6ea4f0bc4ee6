// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/low_precision_gemm.h"

#include "base/check.h"
#include "base/log.h"
#include "base/plain_text.h"
#include "gemm/block_scaled_gemm.h"
#include "gemm/cuda_gemm.h"
#include "gemm/scaled_mm.h"
#include "gemm/torch_gemm.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

// Why the kernels that come before `chosen` (all of them: nullptr) were passed over, a line each.
std::string refusals_before(const GemmProblem& problem, const GemmKernel* chosen) {
  std::string lines;
  for (const GemmKernel& kernel : gemm_kernels()) {
    if (&kernel == chosen) break;
    const std::optional<std::string> refusal = kernel.refusal(problem);
    lines += concat("\n  not ", kernel.name, ": ", refusal.value_or("(it could)"));
  }
  return lines;
}

void log_choice(const GemmProblem& problem, const GemmKernel& kernel) {
  if (!logs_dispatch()) return;
  log_dispatch(
      concat(problem.describe(), "\n  -> ", kernel.name, refusals_before(problem, &kernel)));
}

}  // namespace

std::string GemmProblem::describe() const {
  return concat(to_string(gemm), ": ", moe8::describe(left), " (", to_string(formats.left), ") x ",
                moe8::describe(right), " (", to_string(formats.right), "), ", groups.count(),
                " groups, ", out_dtype, " out, ", to_string(kernel_preference));
}

FormKey GemmProblem::left_key(Encoding encoding) const {
  return {formats.left, gemm == Gemm::GRAD_WEIGHT ? 0 : 1, encoding};
}

FormKey GemmProblem::right_key(Encoding encoding) const {
  const int64_t axis = gemm == Gemm::OUT ? 2 : gemm == Gemm::GRAD_INPUT ? 1 : 0;
  const bool from_row_codes =
      weight_from_row_codes && gemm == Gemm::GRAD_INPUT && encoding == Encoding::FLOAT8;
  return {formats.right, axis, encoding, from_row_codes};
}

const std::vector<GemmKernel>& gemm_kernels() {
  static const std::vector<GemmKernel> kernels = {
      // Codes where the tensor cores take them: on Hopper by moe8's kernels; by LibTorch's what
      // those lack (E5M2 on the right), and on other GPUs.
      {"cuda_fp8", Encoding::FLOAT8, &cuda_fp8_refusal, &cuda_fp8_gemm, &cuda_fp8_add},
      {"scaled_mm", Encoding::FLOAT8, &scaled_mm_refusal, &scaled_mm_gemm},
      {"scaled_grouped_mm", Encoding::FLOAT8, &scaled_grouped_mm_refusal, &scaled_grouped_mm_gemm},
      {"cuda_bf16", Encoding::BF16, &cuda_bf16_refusal, &cuda_bf16_gemm, &cuda_bf16_add},
      // On Blackwell, where the one before refuses: MX codes.
      {"block_scaled", Encoding::BF16, &block_scaled_refusal, &block_scaled_gemm},
      // Values, multiplied by LibTorch: every product of a CPU, and what no kernel before computes
      // exactly on a GPU.
      {"torch_bf16", Encoding::BF16, &torch_bf16_refusal, &torch_bf16_gemm},
      {"torch_float32", Encoding::FLOAT32, &torch_float32_refusal, &torch_float32_gemm},
  };
  return kernels;
}

const GemmKernel& choose_gemm_kernel(const GemmProblem& problem) {
  for (const GemmKernel& kernel : gemm_kernels()) {
    if (!kernel.refusal(problem)) return kernel;
  }
  fail("low_precision_gemm", "",
       concat("no kernel for ", problem.describe(), refusals_before(problem, nullptr)));
}

at::Tensor low_precision_gemm(const GemmProblem& problem) {
  const GemmKernel& kernel = choose_gemm_kernel(problem);
  log_choice(problem, kernel);
  at::Tensor result = kernel.launch(problem);
  // A layer whose forward ran before anybody listened may have kept its input quantized only.
  if (numerics_observed() && problem.left.has_source() && problem.right.has_source()) {
    show_to_observers(problem, result);
  }
  return result;
}

void add_low_precision_gemm(GemmProblem problem, at::Tensor& sum) {
  const GemmKernel& kernel = choose_gemm_kernel(problem);
  if (kernel.add) problem.out_dtype = at::kFloat;
  if (!sum.defined()) {
    sum = low_precision_gemm(problem).to(at::kFloat);
    return;
  }
  if (!kernel.add) {
    sum.add_(low_precision_gemm(problem));
    return;
  }
  if (numerics_observed()) low_precision_gemm(problem);  // observers see products by themselves
  log_choice(problem, kernel);
  kernel.add(problem, sum);
  sum.unsafeGetTensorImpl()->bump_version();
}

}  // namespace moe8
