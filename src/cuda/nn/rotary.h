// SPDX-License-Identifier: BSD-3-Clause
// Rotary positions of queries and keys in one launch. No Torch. Reference: src/reference/model.h,
// whose bits the kernels give. Allocates nothing, never waits for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "moe8/rotary_pairs.h"

namespace moe8::cuda {

/// One tensor [batches, positions, heads, width]. Strides count elements; features are neighbours.
struct RotaryHeads {
  const void* in = nullptr;
  int64_t batch_stride = 0;
  int64_t position_stride = 0;
  int64_t head_stride = 0;
  int64_t heads = 0;    // 0: no such tensor
  void* out = nullptr;  // contiguous; may be `in` where that is contiguous as well
};

/// Pair (a, b) of a head at position s becomes, with c = cos and t = sin of freqs[s, j], in float32
/// and each operation rounded by itself,
///   (a c - b t, a t + b c),  and with `inverse`, which is the backward,  (a c + b t, b c - a t)
/// rounded once to the type of the tensors. Cost floor: each element read once and written once.
struct RotaryArgs {
  RotaryHeads q, k;
  FloatType type;
  int64_t batches;
  int64_t positions;
  int64_t width;       // even
  const float* freqs;  // [positions, width / 2] pairs (cos, sin)
  RotaryPairs pairs = RotaryPairs::NEIGHBOURS;
  bool inverse = false;
};
LaunchStatus launch_rotary(const RotaryArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
