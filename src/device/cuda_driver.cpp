// SPDX-License-Identifier: BSD-3-Clause
#include "device/cuda_driver.h"

#include <dlfcn.h>

#include <optional>

namespace moe8 {
namespace {

template <typename Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

std::optional<CudaDriver> start() {
  void* const library = dlopen("libcuda.so.1", RTLD_LAZY);  // never closed
  if (!library) return std::nullopt;
  CudaDriver driver{};
  int (*init)(unsigned) = nullptr;
  const bool found = find(library, "cuInit", init) &&
                     find(library, "cuDeviceGetCount", driver.device_get_count) &&
                     find(library, "cuDeviceGet", driver.device_get) &&
                     find(library, "cuDeviceGetName", driver.device_get_name) &&
                     find(library, "cuDeviceGetAttribute", driver.device_get_attribute) &&
                     find(library, "cuStreamGetCaptureInfo", driver.stream_get_capture_info);
  if (!found || init(0) != 0) return std::nullopt;
  return driver;
}

}  // namespace

const CudaDriver* cuda_driver() {
  static const std::optional<CudaDriver> driver = start();
  return driver ? &*driver : nullptr;
}

}  // namespace moe8
