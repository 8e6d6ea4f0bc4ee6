// SPDX-License-Identifier: BSD-3-Clause
#include "device/cuda_backend.h"

#include <dlfcn.h>

#include "base/plain_text.h"
#include "device/cuda_driver.h"

namespace moe8 {
namespace {

std::optional<std::string> load() {
  // Without a driver the library would load in seconds and be of no use.
  const CudaDriver* const driver = cuda_driver();
  if (!driver) return "no NVIDIA driver (libcuda.so.1) was found, or it cannot start";
  int devices = 0;
  if (driver->device_get_count(&devices) != 0 || devices == 0) return "no GPU";
  if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
    return concat("LibTorch's CUDA library could not be loaded: ", dlerror());
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> load_cuda_backend() {
  static const std::optional<std::string> failure = load();
  return failure;
}

}  // namespace moe8
