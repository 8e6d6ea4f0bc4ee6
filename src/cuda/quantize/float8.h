// SPDX-License-Identifier: BSD-3-Clause
// The CUDA quantizers of FP8 with float32 scales: what each takes and gives. No Torch.
// Arithmetic: docs/numerics.md, section 2. All are deterministic, write every byte of their
// outputs, allocate nothing and never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/quantize/groups.h"
#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// What is quantized, and to what; the beginning of all arguments below.
struct Float8Source {
  const void* x;  // [rows, columns], contiguous
  FloatType x_type;
  int64_t columns;
  RowGroups groups;
  ElemDtype elem;
  bool round_scales_to_power_of_2;
};

/// One scale per row. In the same pass the largest magnitude per group and column, which the
/// transposed codes need before their first byte.
struct Float8RowsArgs : Float8Source {
  uint8_t* codes;          // [rows, pitch]; columns past `columns` become 0
  int64_t pitch;           // a multiple of 16, >= columns
  float* inverse_scale;    // [rows], 1 / scale: what a GEMM multiplies by
  uint32_t* column_amax;   // [groups, columns] float32 bits; null: not wanted
  float* scale = nullptr;  // [rows]; null: not wanted

  // Joined: codes [groups, joined.group_rows, pitch] and scales [groups, joined.group_rows], of
  // which these rows alone are written.
  JoinedRows joined = {};
  bool adds_to_column_amax = false;  // column_amax holds maxima of other parts: they stay in it
};
LaunchStatus launch_float8_rows(const Float8RowsArgs& args, cudaStream_t stream);

/// What launch_float8_rows takes for these arguments, for a log.
struct Float8RowsVariant {
  int row_threads;  // that share a row; 0: any number of columns at any address, element by element
  int packets;      // of 16 bytes that each holds
};
Float8RowsVariant choose_float8_rows(const Float8RowsArgs& args);

/// One scale per group and column, codes transposed, so that a GEMM can contract over rows.
/// Jagged groups lie side by side, padded to RowGroups::padding; equal ones one after the other.
struct Float8TransposedArgs : Float8Source {
  const uint32_t* amax;  // [groups, columns], or [1] when `one_scale`
  bool one_scale;        // tensorwise: one scale for all

  uint8_t* codes;          // jagged [columns, transposed_columns()], equal [groups, columns, same]
  float* inverse_scale;    // [groups, columns]; null: not wanted
  float* scale = nullptr;  // [groups, columns]; null: not wanted. Only with inverse_scale

  // The codes by rows too, from the same reading; only when `one_scale`, and of rows in groups.
  uint8_t* row_codes = nullptr;        // [rows, row_pitch]; columns past `columns` become 0
  int64_t row_pitch = 0;               // a multiple of 16, >= columns
  float* row_inverse_scale = nullptr;  // [rows], all the same

  // Joined: codes [groups, columns, joined.group_rows padded]. Written are these rows, and the
  // padding by the part that ends at joined.group_rows. `amax` is that of all parts: each that is
  // given an inverse_scale writes the same. Not with row_codes.
  JoinedRows joined = {};
};
LaunchStatus launch_float8_transposed(const Float8TransposedArgs& args, cudaStream_t stream);

/// Largest magnitude of all `count` elements, as float32 bits, into *amax.
LaunchStatus launch_amax(const void* x, FloatType x_type, int64_t count, uint32_t* amax,
                         cudaStream_t stream);

/// Tensorwise: one scale, from an amax on the device.
struct Float8TensorArgs : Float8Source {
  const uint32_t* amax;  // [1]

  uint8_t* codes;        // [rows, pitch]; columns past `columns` become 0
  int64_t pitch;         // a multiple of 16, >= columns
  float* scale;          // [1]; null: not wanted
  float* inverse_scale;  // [1]
};
LaunchStatus launch_float8_tensor(const Float8TensorArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
