// SPDX-License-Identifier: BSD-3-Clause
// Groups on a device, in a build without CUDA. No CUDA tensor gets this far; if one did, this would
// say so.
#include "base/check.h"
#include "groups/token_groups.h"

namespace moe8 {

struct DeviceGroups {};

std::shared_ptr<const DeviceGroups> make_device_groups(const std::optional<at::Tensor>&, int64_t,
                                                       const at::Device&) {
  fail("make_device_groups", "device",
       "expected a CPU tensor: this build of moe8 has no CUDA kernels (MOE8_CUDA)");
}

}  // namespace moe8
