// SPDX-License-Identifier: BSD-3-Clause
// What the functions of src/cuda that launch kernels say. No Torch.
#pragma once

#include <cuda_runtime_api.h>

namespace moe8::cuda {

/// Success, or what failed (a step of the launch, an argument that does not fit) and the CUDA error
/// behind it.
struct LaunchStatus {
  cudaError_t error = cudaSuccess;
  const char* failed = nullptr;  // nullptr: launched

  bool ok() const { return error == cudaSuccess; }
};

/// An argument that no kernel takes.
inline LaunchStatus refused(const char* why) {
  return {cudaErrorInvalidValue, why};
}

}  // namespace moe8::cuda
