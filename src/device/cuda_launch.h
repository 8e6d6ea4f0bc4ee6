// SPDX-License-Identifier: BSD-3-Clause
// From tensors to CUDA kernels: device, stream and memory of a launch, and its error. Only for
// files built with CUDA.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cuda/EmptyTensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "base/check.h"
#include "base/plain_text.h"
#include "cuda/launch_status.h"

namespace moe8 {

/// Makes a tensor's device the current one while it lives; `stream` is that device's current one.
struct Launch {
  explicit Launch(const at::Device& device)
      : guard(device), stream(c10::cuda::getCurrentCUDAStream(device.index()).stream()) {}

  c10::cuda::CUDAGuard guard;
  cudaStream_t stream;
};

/// @throws c10::Error unless the launch succeeded.
inline void check_launch(const char* op, const cuda::LaunchStatus& status) {
  if (status.ok()) return;
  (void)cudaGetLastError();  // a launch that was refused leaves nothing behind but this
  fail(op, "",
       concat("a CUDA kernel could not be launched (", status.failed,
              "): ", cudaGetErrorString(status.error)));
}

/// Memory for a result.
inline at::Tensor empty_on(const at::Device& device, at::IntArrayRef sizes, at::ScalarType dtype) {
  // Not by way of the dispatcher: a product makes a dozen of these.
  return at::detail::empty_cuda(sizes, dtype, device, std::nullopt);
}
inline at::Tensor empty_on(const at::Tensor& x, at::IntArrayRef sizes, at::ScalarType dtype) {
  return empty_on(x.device(), sizes, dtype);
}

/// Bytes from one row of FP8 codes to the next: whole 16-byte accesses.
inline int64_t code_pitch(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

}  // namespace moe8
