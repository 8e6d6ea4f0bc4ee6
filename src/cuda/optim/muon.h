// SPDX-License-Identifier: BSD-3-Clause
// What Muon does to the elements of many tensors before and after its products, in few launches. No
// Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "kernels/muon.h"

namespace moe8::cuda {

/// Arrays are contiguous; those that begin at a multiple of 16 bytes are read eight elements at a
/// time. What is of the device can be read by a graph of a launch when it is replayed.
struct MuonMomentum {
  const void* grad;
  void* momentum;       // updated, unless the norm is not finite
  BFloat16* direction;  // written; 0 where the norm is not finite
  int64_t elements;
};

struct MuonMomentumStep {
  MuonRule rule;
  FloatType grad_type, momentum_type;
  const float* norm;  // [1] of the device, see launch_gradient_norm; null: no clipping
};

/// moe8::muon_direction() for every element: bit for bit src/reference/muon.cpp. A launch of 48
/// tensors; deterministic, allocates nothing, never waits for the host.
LaunchStatus launch_muon_directions(const MuonMomentumStep& step,
                                    std::span<const MuonMomentum> tensors, cudaStream_t stream);

struct MuonWeight {
  const BFloat16* direction;  // orthogonalized
  void* weight;               // float32 master or the parameter itself, updated
  BFloat16* copy;             // receives the new weight rounded to nearest; null: none
  int64_t elements;
  double weight_decay;
  double scale;  // of the learning rate
};

struct MuonWeightStep {
  FloatType weight_type;
  const double* learning_rate;  // [1] of the device
  const float* norm;            // [1] of the device; not finite: nothing changes; null: a step
};

/// moe8::muon_weight() for every element, as above.
LaunchStatus launch_muon_weights(const MuonWeightStep& step, std::span<const MuonWeight> tensors,
                                 cudaStream_t stream);

}  // namespace moe8::cuda
