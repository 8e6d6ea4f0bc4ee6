// SPDX-License-Identifier: BSD-3-Clause
// The CUDA quantizers to MX formats: what they take and give. No Torch.
// Arithmetic: docs/numerics.md, section 3. Deterministic; they write every byte of their outputs,
// allocate nothing and never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/quantize/groups.h"
#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// What is wanted of one direction. All null: nothing.
struct MxOutputs {
  void* values = nullptr;    // [rows, columns], the value of each code
  uint8_t* codes = nullptr;  // [rows, columns], one code a byte in every format
  uint8_t* scale = nullptr;  // row blocks: [rows, ceil(columns / 32)]; column blocks: see below

  constexpr bool any() const { return values != nullptr || codes != nullptr || scale != nullptr; }
};

/// Blocks of 32 along the rows, or along the columns, or both in one pass over x. Either values or
/// codes, not both in one call.
struct MxArgs {
  const void* x;  // [rows, columns], contiguous
  FloatType x_type;
  int64_t columns;
  RowGroups groups;
  ElemDtype elem;
  ScaleCalculationMode mode;

  MxOutputs row_blocks;  // 32 neighbours of a row share a scale
  /// 32 neighbours of a column share a scale; blocks start afresh at each group's first row. Past
  /// the last group values and codes are 0. scale is [column_scale_rows, columns]: one row a block,
  /// group after group, then zeros.
  MxOutputs column_blocks;
  int64_t column_scale_rows;  // at least the number of blocks, at most blocks_of(groups).count
  FloatType values_type;

  // Joined: values [groups, joined.group_rows, columns], of which these rows alone are written.
  // Column blocks are those of the whole result where parts are whole blocks. Values only.
  JoinedRows joined = {};
};
LaunchStatus launch_mx(const MxArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
