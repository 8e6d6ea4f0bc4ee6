// SPDX-License-Identifier: BSD-3-Clause
// The gated activation between the two products of an expert layer, forward and backward, as FP8
// codes and as bf16. No Torch. Reference: src/reference/swiglu.h. All are deterministic, write
// every byte of their outputs, allocate nothing and never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "cuda/quantize/groups.h"
#include "formats/float_type.h"
#include "kernels/gate_args.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// What is wanted of a matrix of bf16 rows that a kernel makes: any of its outputs, or none. The
/// codes and scales equal those of launch_float8_rows() for `values` bit for bit, whether or not
/// `values` are wanted. Rows past the last group are rows of zeros.
struct ActivationRows {
  void* values = nullptr;  // bf16 [rows, columns]

  uint8_t* codes = nullptr;        // [rows, pitch]; columns past `columns` become 0
  int64_t pitch = 0;               // a multiple of 16, >= columns
  float* inverse_scale = nullptr;  // [rows], 1 / scale; given with `codes`

  /// [groups, columns] float32 bits of the largest magnitude of `values` per group and column.
  uint32_t* column_amax = nullptr;

  bool any() const { return values || codes || column_amax; }
};

/// The hidden rows, and what both directions are told. `columns` is h, a row of H has 2 h. With
/// s = scores[slot_of_row[row]] (1 without scores) and the bias of the row's group, in float32:
///   H' = s * H + bias  when scores are on the INPUT (one fused multiply-add),  else  H' = H + bias
///   A  = act(H')
struct SwigluSource {
  const void* hidden;  // H: bf16 [rows, 2 * columns], contiguous, by activation.layout
  int64_t columns;     // any
  RowGroups groups;    // jagged
  GateActivation activation;

  const void* bias = nullptr;  // [groups, 2 * columns], laid out as a row of H; null: none
  FloatType bias_type = FloatType::BF16;

  const float* scores = nullptr;         // [rows] by slot; null: all 1
  const int32_t* slot_of_row = nullptr;  // [rows], a permutation; needed with scores and score_grad
  GateScores placement = GateScores::OUTPUT;

  ElemDtype elem = ElemDtype::E4M3;  // of all codes; E4M3 or E5M2
  bool round_scales_to_power_of_2 = true;
};

/// out = bf16(A). Scores on the OUTPUT play no part here. column_amax must be null: the backward
/// pass has the columns. Cost floor per row: 4 h bytes read; h written as codes, 2 h as values.
struct SwigluArgs : SwigluSource {
  ActivationRows out;
};
LaunchStatus launch_swiglu(const SwigluArgs& args, cudaStream_t stream);

/// From dA, the gradient of what the second product took in (before scores on the OUTPUT), in
/// float32:
///   scores on the OUTPUT:  dact = s * dA,  scored_activation = bf16(s * A),
///                          score_grad = sum over h of dA * A
///   scores on the INPUT:   dact = dA,      scored_activation = bf16(A),
///                          score_grad = sum over 2 h of dH' * H
///   dH' = act'(dact);  hidden_grad = bf16(s * dH') when scores are on the INPUT, else bf16(dH')
/// scored_activation is the right operand of the second product's weight gradient, whose left one
/// is the unscaled gradient of the outputs. <dO, b2>, which a bias of the second product adds to
/// score_grad, is not in it. The order of its sum depends on `columns` and on alignment alone.
///
/// In place: hidden_grad.codes of pitch 2 h may lie where `grad` lies, as both have 2 h bytes per
/// row, when choose_swiglu_backward() says row_threads > 0: a row is read whole before it is
/// written.
///
/// Cost floor per row: 6 h bytes read; 3 h written as codes of both, 6 h as values of both.
struct SwigluBackwardArgs : SwigluSource {
  const void* grad;  // dA: bf16 [rows, columns], contiguous

  ActivationRows hidden_grad;        // 2 * columns wide, by activation.layout
  ActivationRows scored_activation;  // columns wide
  float* score_grad = nullptr;  // [rows] by slot, 0 for rows past the last group; null: not wanted
};
LaunchStatus launch_swiglu_backward(const SwigluBackwardArgs& args, cudaStream_t stream);

/// What a launch takes for these arguments, for a log.
struct SwigluVariant {
  int row_threads;  // that share a row; 0: any number of columns at any address, pair by pair
  int packets;      // of eight pairs that each holds
};
SwigluVariant choose_swiglu(const SwigluArgs& args);
SwigluVariant choose_swiglu_backward(const SwigluBackwardArgs& args);

}  // namespace moe8::cuda
