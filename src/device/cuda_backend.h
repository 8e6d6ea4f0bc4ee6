// SPDX-License-Identifier: BSD-3-Clause
// LibTorch's CUDA half at run time. libmoe8 does not link it, so that one build runs on machines
// with and without it; a program that wants GPU tensors loads it, or is linked with it.
#pragma once

#include <optional>
#include <string>

namespace moe8 {

/// Loads libtorch_cuda unless it is there. Call it before the first tensor is made.
/// @return nothing when CUDA tensors can be made, else why not: no driver, no GPU, or a LibTorch
///         without CUDA.
std::optional<std::string> load_cuda_backend();

}  // namespace moe8
