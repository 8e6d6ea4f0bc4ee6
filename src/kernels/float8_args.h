// SPDX-License-Identifier: BSD-3-Clause
// The arguments of the Float8 kernels of the reference and the CPU: pointers and sizes, no Torch.
// Those of CUDA are in src/cuda/quantize/float8.h.
#pragma once

#include <cstdint>

#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8 {

/// Elements [begin, begin + size) of the reduced axis that share one scale; a row, a group's rows.
struct Float8Set {
  int64_t begin;
  int64_t size;
};

/// x seen as [outer, length, inner], contiguous, reduced along the middle axis within each set.
struct Float8QuantizeArgs {
  ElemDtype elem;
  bool round_scales_to_power_of_2;

  const void* x;  // [outer, length, inner]
  FloatType x_type;
  int64_t outer;
  int64_t length;
  int64_t inner;

  const Float8Set* sets;  // [set_count]
  int64_t set_count;

  float* scale;  // [outer, set_count, inner]; read instead of computed when `scale_is_given`
  bool scale_is_given;

  // Outputs; those that are null are not wanted. Elements in no set are not written.
  uint8_t* data;      // [outer, length, inner]
  void* dequantized;  // [outer, length, inner]
  FloatType dequantized_type;

  /// Units that can run in any order and in parallel: one set of one outer index, kColumns columns.
  static constexpr int64_t kColumns = 256;
  int64_t column_chunks() const { return (inner + kColumns - 1) / kColumns; }
  int64_t work_items() const { return outer * set_count * column_chunks(); }
};

/// The way back: value = decode(data) * (1 / scale), rounded once.
struct Float8DequantizeArgs {
  ElemDtype elem;
  const uint8_t* data;  // [outer, length, inner]
  const float* scale;   // [outer, set_count, inner]
  int64_t outer;
  int64_t length;
  int64_t inner;
  const Float8Set* sets;
  int64_t set_count;
  void* out;  // [outer, length, inner]; elements in no set are not written
  FloatType out_type;

  int64_t column_chunks() const {
    return (inner + Float8QuantizeArgs::kColumns - 1) / Float8QuantizeArgs::kColumns;
  }
  int64_t work_items() const { return outer * set_count * column_chunks(); }
};

}  // namespace moe8
