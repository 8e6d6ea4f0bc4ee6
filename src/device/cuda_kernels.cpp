// SPDX-License-Identifier: BSD-3-Clause
// Which GPUs and groups the kernels of src/cuda serve.

#include "base/plain_text.h"
#include "cuda/groups/group_metadata.h"
#include "device/cuda_device.h"
#include "device/implementation.h"

namespace moe8 {

std::optional<std::string> cuda_kernels_refusal(const c10::Device& device, int64_t groups) {
  if (!is_hopper(device) && !is_blackwell(device)) {
    return concat(
        "moe8's CUDA kernels are built for compute capability 9.0 (H100, H200) and its "
        "quantizers for 10.x too; ",
        device, " has ", describe_capability(device));
  }
  if (groups > cuda::kMaxGroups) return concat("more than ", cuda::kMaxGroups, " groups");
  return std::nullopt;
}

}  // namespace moe8
