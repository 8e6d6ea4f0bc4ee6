// SPDX-License-Identifier: BSD-3-Clause
// The CUDA side of operands in a build without CUDA. No CUDA tensor gets this far; if one did, these
// would say so.
#include "base/check.h"
#include "operand/cuda_forms.h"
#include "operand/token_groups.h"

namespace moe8 {
namespace {

[[noreturn]] void fail_without_cuda(const char* op) {
  fail(op, "device", "expected a CPU tensor: this build of moe8 has no CUDA kernels (MOE8_CUDA)");
}

}  // namespace

struct DeviceGroups {};

std::shared_ptr<const DeviceGroups> make_device_groups(const std::optional<at::Tensor>&, int64_t,
                                                       const at::Device&) {
  fail_without_cuda("make_device_groups");
}

std::vector<Form> make_cuda_forms(const at::Tensor&, const std::vector<FormKey>&,
                                  const TokenGroups&) {
  fail_without_cuda("make_cuda_forms");
}

}  // namespace moe8
