// SPDX-License-Identifier: BSD-3-Clause
#include "device/implementation.h"

#include <cstdlib>
#include <string_view>

namespace moe8 {

bool kernels_wanted() {
  static const bool wanted = [] {
    const char* setting = std::getenv("MOE8_KERNELS");
    return !setting || std::string_view(setting) != "off";
  }();
  return wanted;
}

std::optional<std::string> kernels_refusal(const c10::Device& device, int64_t groups) {
  if (!kernels_wanted()) return "MOE8_KERNELS=off takes the kernels of moe8 away";
  if (device.is_cpu()) return std::nullopt;
  return cuda_kernels_refusal(device, groups);
}

Implementation implementation_on(const c10::Device& device, int64_t groups) {
  if (kernels_refusal(device, groups)) return Implementation::OPERATIONS;
  return device.is_cpu() ? Implementation::CPU_KERNELS : Implementation::CUDA_KERNELS;
}

Implementation implementation_of(const at::Tensor& x, const std::optional<at::Tensor>& offs) {
  return implementation_on(x.device(), offs && offs->defined() ? offs->numel() : 1);
}

}  // namespace moe8
