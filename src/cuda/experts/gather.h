// SPDX-License-Identifier: BSD-3-Clause
// Rows of tokens into the order of experts, as they are or as FP8 codes: each goes to k places, one
// per slot (slots and rows: cuda/experts/routing.h). No Torch. Both are deterministic, write every
// byte of their outputs, allocate nothing and never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "cuda/quantize/groups.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// out[row_of_slot[t * k + j]] = in[t], byte for byte; zeros in the rows past the last group.
/// Cost floor: each row of `in` is read once, each row of `out` written once.
struct GatherRowsArgs {
  const void* in;     // [tokens, row_bytes]
  int64_t tokens;     // T
  int64_t row_bytes;  // any
  int64_t top_k;      // k

  const int32_t* row_of_slot;     // [tokens * top_k], a permutation
  const int32_t* rows_in_groups;  // [1] end of the last group (GroupMetadata::begins + groups);
                                  // null: all rows are in groups
  void* out;                      // [rows, row_bytes]
  int64_t rows = -1;              // that are wanted, the first ones; -1: tokens * top_k
};
LaunchStatus launch_gather_rows(const GatherRowsArgs& args, cudaStream_t stream);

/// FP8 codes by rows, with one scale per row, as launch_float8_rows() leaves them: the rows of a
/// matrix in groups, or those of tokens, to be read at slot_of_row[row] / k.
struct RowCodes {
  const uint8_t* codes;        // [rows or tokens, pitch], 16-byte aligned
  const float* inverse_scale;  // [rows or tokens]
  ElemDtype elem;              // E4M3 or E5M2
  int64_t columns;
  int64_t pitch;     // a multiple of 16, >= columns
  RowGroups groups;  // of the rows

  const int32_t* slot_of_row = nullptr;  // [rows]; null: row r is row r of the codes
  int64_t top_k = 1;                     // k
};

/// Why no kernel takes these codes; null: they are taken.
inline const char* refusal_of(const RowCodes& in) {
  const bool fits = in.elem == ElemDtype::E4M3 || in.elem == ElemDtype::E5M2;
  if (!fits) return "a format that the hardware does not convert from";
  if (!in.groups.is_valid()) return "more rows than 32 bits count";
  if (in.pitch % 16 != 0 || in.pitch < in.columns || in.pitch > INT32_MAX) {
    return "a pitch of codes that does not fit";
  }
  if (reinterpret_cast<uintptr_t>(in.codes) % 16 != 0) return "codes that are not 16-byte aligned";
  return in.top_k < 1 ? "tokens without slots" : nullptr;
}

/// The codes of tokens gathered, `pitch` bytes per row: the same codes and scales as quantizing the
/// gathered rows gives. Rows past the last group get zeros and an inverse scale of 1.
struct GatherCodesArgs {
  RowCodes in;                 // with slot_of_row
  const int32_t* row_of_slot;  // [tokens * k], the permutation the other way

  uint8_t* codes;        // [rows, pitch], 16-byte aligned
  float* inverse_scale;  // [rows]
  // [groups, columns] float32 bits of the largest |code * inverse_scale|, which
  // launch_transpose_codes() needs; a NaN is 0x7FC00000. Null: not wanted.
  uint32_t* column_amax;

  // T, where slots past the rows of in.groups have none; -1: rows / k, each slot has a row.
  int64_t tokens = -1;
};
LaunchStatus launch_gather_codes(const GatherCodesArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
