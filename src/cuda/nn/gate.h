// SPDX-License-Identifier: BSD-3-Clause
// silu(gate) * up of a feed-forward and its gradients, each in one pass. No Torch. The arithmetic
// of a pair is that of src/cuda/experts/gate.cuh. Deterministic; allocate nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"

namespace moe8::cuda {

/// out = silu(gate) * up in float32, rounded once. Cost floor: 3 accesses per element.
struct GateArgs {
  const void* gate;
  const void* up;
  FloatType type;  // of all
  int64_t count;
  void* out;
};
LaunchStatus launch_gate(const GateArgs& args, cudaStream_t stream);

/// From grad, the gradient of out: of gate and up, in float32, each rounded once. They may lie
/// where gate, up or grad lie. Cost floor: 5 accesses per element.
struct GateBackwardArgs {
  const void* gate;
  const void* up;
  const void* grad;
  FloatType type;
  int64_t count;
  void* grad_gate;
  void* grad_up;
};
LaunchStatus launch_gate_backward(const GateBackwardArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
