// SPDX-License-Identifier: BSD-3-Clause
// What lies between the products of an expert layer, for products that read MX values: tokens are
// quantized as they are gathered, hidden rows and their gradients as they are made. No Torch. All
// are deterministic, write every byte of their outputs, allocate nothing and never wait for the
// host.
//
// Values are those of e4m3 codes with a scale per block of 32 (docs/numerics.md, section 3): equal,
// bit for bit, to launch_mx() of the bf16 rows, whether or not those are wanted. Matrices start at
// 16-byte addresses, and `columns` is a multiple of 8. Rows past the last group are rows of zeros.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/experts/swiglu.h"
#include "cuda/launch_status.h"
#include "cuda/quantize/groups.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// What is wanted of a matrix of bf16 rows that a kernel makes: any of these, bf16 [rows, columns].
struct MxRows {
  void* values = nullptr;         // the rows themselves
  void* row_values = nullptr;     // in blocks along the rows
  void* column_values = nullptr;  // in blocks along the columns, which start afresh in each group

  constexpr bool any() const { return values || row_values || column_values; }
};

/// The rows in[slot_of_row[row] / top_k]. Cost floor: each token is read once, 2 bytes per element
/// of every output.
struct GatherMxArgs {
  const void* in;              // bf16 [tokens, columns]
  int64_t columns;             // of a token
  RowGroups groups;            // jagged
  const int32_t* slot_of_row;  // [rows], a permutation
  const int32_t* row_of_slot;  // [tokens * top_k], the other way
  int64_t top_k;
  ScaleCalculationMode mode;
  MxRows out;

  // Where slots past the rows of `groups` have none; -1: rows / top_k, each slot has a row.
  int64_t tokens = -1;
};
LaunchStatus launch_gather_mx(const GatherMxArgs& args, cudaStream_t stream);

/// As SwigluArgs, whose formulas these are. Cost floor per row: 4 h bytes read, 2 h per output.
struct SwigluMxArgs : SwigluSource {
  ScaleCalculationMode mode;
  MxRows out;  // A
};
LaunchStatus launch_swiglu_mx(const SwigluMxArgs& args, cudaStream_t stream);

/// As SwigluBackwardArgs. Blocks along the rows of hidden_grad need halves of whole blocks: with
/// HALVES `columns` must be a multiple of 32. One output of scored_activation may lie where `grad`
/// lies: a tile is read whole before it is written. Cost floor per row: 6 h bytes read, 4 h per
/// output of hidden_grad, 2 h per one of scored_activation.
struct SwigluMxBackwardArgs : SwigluSource {
  ScaleCalculationMode mode;
  const void* grad;  // dA: bf16 [rows, columns]

  MxRows hidden_grad;            // 2 * columns wide, by activation.layout
  MxRows scored_activation;      // columns wide
  float* score_grad = nullptr;   // [rows] by slot, 0 for rows past the last group; null: not wanted
  float* score_parts = nullptr;  // [swiglu_mx_score_parts(columns), rows] for score_grad to use
};
LaunchStatus launch_swiglu_mx_backward(const SwigluMxBackwardArgs& args, cudaStream_t stream);

/// Parts that a row's score_grad is the sum of, in their order.
int64_t swiglu_mx_score_parts(int64_t columns);

}  // namespace moe8::cuda
