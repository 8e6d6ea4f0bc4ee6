// SPDX-License-Identifier: BSD-3-Clause
// AdamW over many tensors in few launches. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/launch_status.h"
#include "kernels/adamw.h"

namespace moe8::cuda {

/// What AdamW reads and writes of one tensor. Every array is contiguous; those that begin at a
/// multiple of 16 bytes are read eight elements at a time.
struct AdamWTensor {
  const void* grad;
  void* weight;    // float32 master or the parameter itself, updated
  BFloat16* copy;  // receives the new weight rounded to nearest; null: none
  void* first;     // moments, updated
  void* second;
  int64_t elements;
  double weight_decay;
  int32_t index;  // in AdamWStep::clocks and scalars; another one for every tensor
};

/// What the tensors of one call share. All pointers are of the device, so that a graph of a launch
/// can be replayed: the learning rate is what is there then.
struct AdamWStep {
  AdamWRule rule;
  FloatType grad_type, weight_type, moment_type;
  AdamWClock* clocks;           // counted up
  StepScalars* scalars;         // room for what the step computes; as many as clocks
  const double* learning_rate;  // [1]
  const float* norm;            // [1], see launch_gradient_norm; null: no clipping, always a step
};

/// One step of moe8::adamw() for every element: bit for bit src/reference/adamw.cpp. Where the norm
/// is not finite nothing changes, clocks included. Of 64 tensors two launches; deterministic,
/// allocates nothing, never waits for the host.
LaunchStatus launch_adamw(const AdamWStep& step, std::span<const AdamWTensor> tensors,
                          cudaStream_t stream);

}  // namespace moe8::cuda
