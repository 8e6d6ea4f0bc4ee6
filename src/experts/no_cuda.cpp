// SPDX-License-Identifier: BSD-3-Clause
// A build without CUDA has no stages on its kernels, and no exchange of tokens.
#include "base/check.h"
#include "experts/cuda_exchange.h"
#include "experts/stages.h"

namespace moe8 {
namespace {

[[noreturn]] void fail_without_kernels() {
  fail("token_exchange", "device", "this build of moe8 has no CUDA kernels (MOE8_CUDA)");
}

}  // namespace

bool cuda_takes_exchange(const at::Tensor&, int64_t, int64_t, int64_t) {
  return false;
}
Destinations cuda_destinations(const at::Tensor&, int64_t, int64_t) {
  fail_without_kernels();
}
at::Tensor cuda_pack_beside(const BesideTokens&, const ExpertOrder&) {
  fail_without_kernels();
}
BesideTokens cuda_unpack_beside(const at::Tensor&, const BesideLayout&) {
  fail_without_kernels();
}

const ExpertStages* cuda_stages() {
  return nullptr;
}

}  // namespace moe8
