// SPDX-License-Identifier: BSD-3-Clause
// Who computes on a device: kernels of moe8, or LibTorch's operations in their place. Quantizers
// give the same bits either way.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace moe8 {

/// Who quantizes.
enum class Implementation {
  CPU_KERNELS,   // src/cpu
  CUDA_KERNELS,  // src/cuda
  OPERATIONS,    // LibTorch's operations: src/quantize/composite.h
};

/// @param groups  groups of rows that the work is about; CUDA kernels know a most.
Implementation implementation_on(const c10::Device& device, int64_t groups = 1);
/// That of x in the groups that end at offs, when there are any.
Implementation implementation_of(const at::Tensor& x, const std::optional<at::Tensor>& offs);

/// Nothing when moe8's kernels quantize on this device, else why LibTorch's operations do.
std::optional<std::string> kernels_refusal(const c10::Device& device, int64_t groups = 1);

/// False when MOE8_KERNELS=off takes the kernels of moe8 away.
bool kernels_wanted();

/// The same question for the kernels of src/cuda. In a build without CUDA: that there are none.
std::optional<std::string> cuda_kernels_refusal(const c10::Device& device, int64_t groups);

}  // namespace moe8
