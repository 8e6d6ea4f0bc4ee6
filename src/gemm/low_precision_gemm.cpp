// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/low_precision_gemm.h"

#include "base/check.h"
#include "base/log.h"
#include "gemm/cpu_gemm.h"
#include "quantize/check_input.h"

namespace moe8 {

const char* to_string(Gemm gemm) {
  switch (gemm) {
    case Gemm::OUT:
      return "out";
    case Gemm::GRAD_INPUT:
      return "grad_input";
    case Gemm::GRAD_WEIGHT:
      return "grad_weight";
  }
  return "invalid";
}

std::string GemmProblem::describe() const {
  return c10::str(to_string(gemm), ": ", moe8::describe(left), " (", to_string(formats.left),
                  ") x ", moe8::describe(right), " (", to_string(formats.right), "), ",
                  offs ? offs->numel() : 1, " groups, ", out_dtype, " out, ",
                  to_string(kernel_preference));
}

const std::vector<GemmKernel>& gemm_kernels() {
  static const std::vector<GemmKernel> kernels = {
      {"cpu_bf16", &cpu_bf16_refusal, &cpu_bf16_gemm},
      {"cpu_float32", &cpu_float32_refusal, &cpu_float32_gemm},
  };
  return kernels;
}

at::Tensor low_precision_gemm(const GemmProblem& problem) {
  std::string refusals;
  for (const GemmKernel& kernel : gemm_kernels()) {
    const std::optional<std::string> refusal = kernel.refusal(problem);
    if (!refusal) {
      if (logs_dispatch()) {
        log_dispatch(c10::str(problem.describe(), "\n  -> ", kernel.name, refusals));
      }
      at::Tensor result = kernel.launch(problem);
      if (numerics_observed()) show_to_observers(problem, result);
      return result;
    }
    refusals += c10::str("\n  not ", kernel.name, ": ", *refusal);
  }
  fail("low_precision_gemm", "", c10::str("no kernel for ", problem.describe(), refusals));
}

}  // namespace moe8
