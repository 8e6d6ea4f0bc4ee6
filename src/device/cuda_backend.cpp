// SPDX-License-Identifier: BSD-3-Clause
#include "device/cuda_backend.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/StringUtil.h>
#include <dlfcn.h>

namespace moe8 {
namespace {

std::optional<std::string> load() {
  // Without a driver the library would load in seconds and be of no use.
  if (!dlopen("libcuda.so.1", RTLD_LAZY)) return "no NVIDIA driver (libcuda.so.1) was found";
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return c10::str("no GPU: ", cudaGetErrorString(error));
  if (devices == 0) return "no GPU";
  if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
    return c10::str("LibTorch's CUDA library could not be loaded: ", dlerror());
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> load_cuda_backend() {
  static const std::optional<std::string> failure = load();
  return failure;
}

}  // namespace moe8
