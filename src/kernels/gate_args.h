// SPDX-License-Identifier: BSD-3-Clause
// How the hidden rows of an expert become activations: what the reference and the kernels of the
// gated activation are told alike. Plain data, no Torch.
#pragma once

#include <cstdint>

namespace moe8 {

/// The gated activation A of the pairs (gate, up) of a row, all in float32:
///   SWIGLU   A = silu(gate) * up
///   CLAMPED  g = min(gate, limit), u = clamp(up, -limit, limit)
///            A = g * sigmoid(alpha * g) * (u + 1)
/// The gradients of clamped values are zero outside the limits and flow at the limits, as in
/// LibTorch.
enum class GateFunction { SWIGLU, CLAMPED };

/// Where gate and up of pair i lie in a row of 2 * columns: at i and columns + i, or at 2 i and 2 i
/// + 1.
enum class GateLayout { HALVES, INTERLEAVED };

/// Which side of the experts the scores multiply.
enum class GateScores { INPUT, OUTPUT };

struct GateActivation {
  GateFunction function = GateFunction::SWIGLU;
  GateLayout layout = GateLayout::HALVES;
  float alpha = 1.0f;  // CLAMPED only
  float limit = 0.0f;  // CLAMPED only, >= 0
};

}  // namespace moe8
