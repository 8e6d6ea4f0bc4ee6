// SPDX-License-Identifier: BSD-3-Clause
// The gated activation of one hidden row, forward and backward, written to be read: the definition
// that the kernels of src/cuda/experts/swiglu.h follow. Theirs may round differently by what their
// exponential and their reciprocal differ in the last places of float32, which is at most one unit
// of bf16 but where terms cancel; and a sigmoid below 2^-126 may be 0.
#pragma once

#include <cstdint>

#include "formats/float_type.h"
#include "kernels/gate_args.h"

namespace moe8::reference {

/// h pairs (gate, up). H' = score * H + bias with the score on the INPUT, else H + bias.
struct SwigluRow {
  GateActivation activation;
  int64_t columns;         // h
  const BFloat16* hidden;  // H [2 * columns], by activation.layout
  const float* bias;       // [2 * columns], laid out as `hidden`; null: none
  float score;             // 1: none
  GateScores placement;
};

/// out = bf16(act(H')), [columns]. A score on the OUTPUT plays no part.
void swiglu(const SwigluRow& row, BFloat16* out);

/// What the backward pass makes of a row.
struct SwigluGradient {
  BFloat16* hidden;      // [2 * columns], as H
  BFloat16* activation;  // [columns]: bf16(score * A) with the score on the OUTPUT, else bf16(A)
  double score;          // summed in float64
};

/// From `grad`, the gradient of A before a score on the OUTPUT, [columns]. Formulas:
/// src/cuda/experts/swiglu.h.
void swiglu_backward(const SwigluRow& row, const BFloat16* grad, SwigluGradient& out);

}  // namespace moe8::reference
