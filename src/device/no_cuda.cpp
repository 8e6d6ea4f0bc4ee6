// SPDX-License-Identifier: BSD-3-Clause
// src/device/cuda_device.h and cuda_backend.h in a build without CUDA.
#include <c10/util/StringUtil.h>

#include "device/cuda_backend.h"
#include "device/cuda_device.h"

namespace moe8 {

StreamId current_stream(const c10::Device&) {
  return {};
}

std::string device_name(const c10::Device&) {
  return "";
}

int compute_capability(const c10::Device&) {
  return 0;
}

std::optional<std::string> quantizer_refusal(const c10::Device& device) {
  if (device.is_cpu()) return std::nullopt;
  return c10::str("this build of moe8 has no kernels for ", device,
                  ". Build it with -DMOE8_CUDA=ON (preset cuda)");
}

std::optional<std::string> load_cuda_backend() {
  return "this build of moe8 has no CUDA kernels (MOE8_CUDA)";
}

}  // namespace moe8
