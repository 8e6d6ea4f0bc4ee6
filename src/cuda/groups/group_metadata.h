// SPDX-License-Identifier: BSD-3-Clause
// What kernels need to know about ragged groups, computed on the device from offs, so that the host
// never waits: sizes, padded starts and tables of the pieces that kernels work on.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"

namespace moe8::cuda {

/// A run of rows of one group: the piece that one block or warp of a quantizer works on.
struct alignas(16) RowChunk {
  int32_t row;       // the first row in the source
  int32_t rows;      // 0: nothing to read
  int32_t group;     // kNoGroup: rows past the last group, or no rows at all
  int32_t in_group;  // where the chunk starts in its group
};

inline constexpr int32_t kNoGroup = -1;
inline constexpr int64_t kMaxGroups = 4096;  // what one block scans

// Heights of the chunks. 32: an MX block. 64: long enough to spread the cost of the column amax's
// atomics. 16: what a thread of the transposing kernel packs into one 16-byte store.
inline constexpr int64_t kBlockRows = 32;
inline constexpr int64_t kSlabRows = 64;
inline constexpr int64_t kTokenRows = 16;

/// The metadata of `groups` groups of together at most `rows` rows; all of it on the device.
struct GroupMetadata {
  int64_t rows;
  int64_t groups;
  int64_t padding;  // group starts in the padded order are multiples of this; it is one of 16

  int32_t* begins;         // [E + 1] first rows; begins[E] is the end of the last group
  int32_t* padded_starts;  // [E + 1] first rows when each group is padded
  RowChunk* blocks;  // [block_count()] kBlockRows each: the groups', then those past the last group
  RowChunk* slabs;   // [slab_count()] kSlabRows each, in the same order
  RowChunk* tokens;  // [token_count()] kTokenRows each, in the padded order

  // Sizes that the host knows: upper bounds for any offs. Chunks past the last have rows 0.
  constexpr int64_t block_count() const { return rows / kBlockRows + groups + 1; }
  constexpr int64_t slab_count() const { return rows / kSlabRows + groups + 1; }
  constexpr int64_t token_count() const { return padded_rows() / kTokenRows; }
  /// Rows of the padded order: enough for any offs, a multiple of 128.
  constexpr int64_t padded_rows() const {
    return (rows + groups * (padding - 1) + 127) / 128 * 128;
  }
};

/// Bytes of device memory that the metadata needs.
int64_t group_metadata_bytes(int64_t rows, int64_t groups, int64_t padding);

/// The metadata laid out in `memory` (16-byte aligned), not yet computed.
GroupMetadata group_metadata(void* memory, int64_t rows, int64_t groups, int64_t padding);

/// Computes it from offs, int32 [E] on the device: cumulative end rows, non-decreasing, in [0,
/// rows]. Others are clamped to [the one before, rows], so that no kernel leaves a tensor; nobody
/// is told. Refused: more than kMaxGroups groups, a padding that is no multiple of 16.
LaunchStatus launch_group_metadata(const int32_t* offs, const GroupMetadata& metadata,
                                   cudaStream_t stream);

}  // namespace moe8::cuda
