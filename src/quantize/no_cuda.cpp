// SPDX-License-Identifier: BSD-3-Clause
// The CUDA side of the quantizers in a build without CUDA: never chosen (device/implementation.h);
// if one of these were called, it would say so.
#include "base/check.h"
#include "quantize/cuda_quantize.h"

namespace moe8 {
namespace {

[[noreturn]] void fail_without_cuda(const char* op) {
  fail(op, "device", "expected a CPU tensor: this build of moe8 has no CUDA kernels (MOE8_CUDA)");
}

}  // namespace

MxCodes cuda_quantize_mx(const at::Tensor&, ElemDtype, ScaleCalculationMode, int64_t,
                         const std::optional<at::Tensor>&) {
  fail_without_cuda("quantize_mx");
}

at::Tensor cuda_fake_quantize_mx(const at::Tensor&, ElemDtype, ScaleCalculationMode, int64_t,
                                 const std::optional<at::Tensor>&, at::ScalarType) {
  fail_without_cuda("fake_quantize_mx");
}

Float8Codes cuda_quantize_float8(const at::Tensor&, const Float8Granularity&, ElemDtype, bool,
                                 const std::optional<at::Tensor>&) {
  fail_without_cuda("quantize_float8");
}

at::Tensor cuda_dequantize_rows(const at::Tensor&, const at::Tensor&, ElemDtype, at::ScalarType) {
  fail_without_cuda("dequantize");
}

BlockedGroups cuda_blocked_m_groups(const at::Tensor&, const at::Tensor&) {
  fail_without_cuda("to_blocked_m_groups");
}

BlockedGroups cuda_blocked_k_groups(const at::Tensor&, const at::Tensor&) {
  fail_without_cuda("to_blocked_k_groups");
}

}  // namespace moe8
