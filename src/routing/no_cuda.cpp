// SPDX-License-Identifier: BSD-3-Clause
// The CUDA side of routing in a build without CUDA: it refuses, and so is never called.
#include "base/check.h"
#include "routing/cuda_router.h"
#include "routing/cuda_rows.h"

namespace moe8 {
namespace {

constexpr const char* kNoKernels = "this build of moe8 has no CUDA kernels (MOE8_CUDA)";

[[noreturn]] void fail_without_cuda() {
  fail("routing", "device", kNoKernels);
}

}  // namespace

std::optional<std::string> cuda_order_refusal(const at::Tensor&, int64_t) {
  return kNoKernels;
}
std::optional<std::string> cuda_rows_refusal(const at::Tensor&, const ExpertOrder&) {
  return kNoKernels;
}
std::optional<std::string> cuda_router_refusal(const at::Tensor&, const RouterOptions&) {
  return kNoKernels;
}
RoutedTokens cuda_route(const at::Tensor&, const RouterOptions&, const at::Tensor&) {
  fail_without_cuda();
}
at::Tensor cuda_route_backward(const at::Tensor&, const RouterOptions&, const at::Tensor&,
                               const at::Tensor&) {
  fail_without_cuda();
}
ExpertOrder cuda_expert_order(const at::Tensor&, int64_t) {
  fail_without_cuda();
}
at::Tensor cuda_gather_tokens(const at::Tensor&, const ExpertOrder&) {
  fail_without_cuda();
}
void cuda_sum_rows_into(const at::Tensor&, const ExpertOrder&, const at::Tensor&, const at::Tensor&,
                        int64_t, const at::Tensor&) {
  fail_without_cuda();
}

}  // namespace moe8
