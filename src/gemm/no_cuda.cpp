// SPDX-License-Identifier: BSD-3-Clause
// src/gemm/cuda_gemm.h in a build without CUDA: every kernel refuses, so none is launched.
#include "base/check.h"
#include "gemm/cuda_gemm.h"

namespace moe8 {
namespace {

constexpr const char* kRefusal = "this build of moe8 has no CUDA kernels (preset cuda)";

[[noreturn]] at::Tensor fail_to_launch(const char* kernel) {
  fail(kernel, "", kRefusal);
}

}  // namespace

std::optional<std::string> cuda_fp8_refusal(const GemmProblem&) {
  return kRefusal;
}
at::Tensor cuda_fp8_gemm(const GemmProblem&) {
  fail_to_launch("cuda_fp8");
}
void cuda_fp8_add(const GemmProblem&, const at::Tensor&) {
  fail_to_launch("cuda_fp8");
}

std::optional<std::string> cuda_bf16_refusal(const GemmProblem&) {
  return kRefusal;
}
at::Tensor cuda_bf16_gemm(const GemmProblem&) {
  fail_to_launch("cuda_bf16");
}
void cuda_bf16_add(const GemmProblem&, const at::Tensor&) {
  fail_to_launch("cuda_bf16");
}

}  // namespace moe8
