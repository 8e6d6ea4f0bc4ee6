// SPDX-License-Identifier: BSD-3-Clause
// Which GPUs the kernels of src/cuda serve in a build without them: none.
#include "device/implementation.h"

namespace moe8 {

std::optional<std::string> cuda_kernels_refusal(const c10::Device&, int64_t) {
  return "this build of moe8 has no CUDA kernels (preset cuda)";
}

}  // namespace moe8
