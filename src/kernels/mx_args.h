// SPDX-License-Identifier: BSD-3-Clause
// The arguments of the MX kernels of the reference and the CPU: pointers and sizes, no Torch. Those
// of CUDA are in src/cuda/quantize/mx.h.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8 {

/// Elements [begin, begin + size) of the quantized axis that share one scale; size <= kMxBlock.
struct MxBlock {
  int64_t begin;
  int64_t size;
};

/// The blocks along an axis of `length`: from 0 on, or afresh in each group of [0, ends[0]),
/// [ends[0], ends[1]), ... Elements past the last group belong to no block.
std::vector<MxBlock> mx_blocks(int64_t length, const int32_t* group_ends, int64_t groups);

/// x seen as [outer, length, inner], contiguous, quantized along the middle axis.
struct MxQuantizeArgs {
  ElemDtype elem;
  ScaleCalculationMode mode;

  const void* x;  // [outer, length, inner]
  FloatType x_type;
  int64_t outer;
  int64_t length;
  int64_t inner;

  const MxBlock* blocks;  // [block_count]
  int64_t block_count;
  int64_t scale_rows;  // rows that `scale` has along the axis, >= block_count

  // Outputs; those that are null are not wanted. Elements in no block are not written.
  uint8_t* data;      // [outer, length, inner], one code per byte in every format
  uint8_t* scale;     // [outer, scale_rows, inner]
  void* dequantized;  // [outer, length, inner], the value of each code
  FloatType dequantized_type;

  /// Units that can run in any order and in parallel: one block across all of `inner`.
  int64_t work_items() const { return outer * block_count; }
};

/// Values along both axes of a matrix from one pass over it: along the middle axis as `columns`
/// says, and along `inner`, whose blocks start at 0 in each row. Writes only rows of some block.
struct MxQuantizeBothArgs {
  MxQuantizeArgs columns;  // writes `dequantized`; inner > 1
  void* row_values;        // [outer, length, inner], of type columns.dequantized_type

  int64_t work_items() const { return columns.work_items(); }
};

/// The way back: value = decode(data) * 2^(scale - 127), rounded once.
struct MxDequantizeArgs {
  ElemDtype elem;
  const uint8_t* data;   // [outer, length, inner], one code per byte
  const uint8_t* scale;  // [outer, scale_rows, inner]
  int64_t outer;
  int64_t length;
  int64_t inner;
  const MxBlock* blocks;
  int64_t block_count;
  int64_t scale_rows;
  void* out;  // [outer, length, inner]; elements in no block are not written
  FloatType out_type;

  int64_t work_items() const { return outer * block_count; }
};

}  // namespace moe8
