// SPDX-License-Identifier: BSD-3-Clause
// From tensors to CUDA kernels: device, stream and memory of a launch, and its error. Only for
// files built with CUDA.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cuda/EmptyTensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "device/check_launch.h"
#include "formats/code_pitch.h"

namespace moe8 {

/// Makes a tensor's device the current one while it lives; `stream` is that device's current one.
struct Launch {
  explicit Launch(const at::Device& device)
      : guard(device), stream(c10::cuda::getCurrentCUDAStream(device.index()).stream()) {}

  c10::cuda::CUDAGuard guard;
  cudaStream_t stream;
};

/// Memory for a result.
inline at::Tensor empty_on(const at::Device& device, at::IntArrayRef sizes, at::ScalarType dtype) {
  // Not by way of the dispatcher: a product makes a dozen of these.
  return at::detail::empty_cuda(sizes, dtype, device, std::nullopt);
}
inline at::Tensor empty_on(const at::Tensor& x, at::IntArrayRef sizes, at::ScalarType dtype) {
  return empty_on(x.device(), sizes, dtype);
}

}  // namespace moe8
