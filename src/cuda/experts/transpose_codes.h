// SPDX-License-Identifier: BSD-3-Clause
// FP8 codes along columns from FP8 codes along rows: what a GEMM that contracts over rows reads,
// without the values that the codes came from. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/experts/gather.h"
#include "cuda/launch_status.h"

namespace moe8::cuda {

/// Per group g and column c: scale = float8_scale(column_amax[g, c], a power of two), and each code
/// is encode((decode(row code) * row inverse scale) * scale), float32 between. Where the scales of
/// the rows are powers of two as well, codes that do not underflow are exact: the same number with
/// another scale. The layout is that of Float8TransposedArgs: jagged groups side by side, padded to
/// RowGroups::padding with zeros; equal ones one after the other.
struct TransposeCodesArgs {
  RowCodes in;                  // with slot_of_row: read through the gather, which makes no copy
  const uint32_t* column_amax;  // [groups, columns] float32 bits: of the codes' values, or of those
                                // that were quantized (rounding to a code leads past no scale)

  uint8_t* codes;        // jagged [columns, transposed_columns()], equal [groups, columns, same];
                         // 16-byte aligned
  float* inverse_scale;  // [groups, columns]; null: not wanted
};

/// Deterministic; writes every byte of its outputs, allocates nothing, never waits for the host.
LaunchStatus launch_transpose_codes(const TransposeCodesArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
