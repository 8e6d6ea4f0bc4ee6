// SPDX-License-Identifier: BSD-3-Clause
// The kernels of a model in a build without CUDA: they take nothing, and so are never called.
#include "base/check.h"
#include "nn/model_kernels.h"

namespace moe8 {
namespace {

[[noreturn]] void fail_without_model_kernels() {
  fail("model_ops", "device", "this build of moe8 has no CUDA kernels (MOE8_CUDA)");
}

}  // namespace

bool model_kernels_take(std::initializer_list<at::Tensor>) {
  return false;
}
RotatedHeads cuda_rotary(const at::Tensor&, const at::Tensor&, const at::Tensor&, RotaryPairs,
                         bool) {
  fail_without_model_kernels();
}
NormResults cuda_rms_norm(const at::Tensor&, const at::Tensor&, const at::Tensor&, double) {
  fail_without_model_kernels();
}
NormGradients cuda_rms_norm_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                     const at::Tensor&, const at::Tensor&) {
  fail_without_model_kernels();
}
at::Tensor cuda_gate(const at::Tensor&, const at::Tensor&) {
  fail_without_model_kernels();
}
GateGradients cuda_gate_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&) {
  fail_without_model_kernels();
}
LossResults cuda_cross_entropy(const at::Tensor&, const at::Tensor&, int64_t, const at::Tensor&) {
  fail_without_model_kernels();
}
void cuda_cross_entropy_backward(const at::Tensor&, const at::Tensor&, int64_t, const LossResults&,
                                 const at::Tensor&, const at::Tensor&) {
  fail_without_model_kernels();
}

}  // namespace moe8
