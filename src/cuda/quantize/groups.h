// SPDX-License-Identifier: BSD-3-Clause
// Which rows of a matrix belong together: the groups of a jagged matrix, or equal ones (weights).
#pragma once

#include "cuda/groups/group_metadata.h"

#if defined(__CUDACC__)
#define MOE8_DEVICE __device__
#else
#define MOE8_DEVICE
#endif

namespace moe8::cuda {

/// Either jagged groups, whose chunks the metadata kernel has listed, or `groups` times
/// `group_rows` rows, whose chunks are counted off.
struct RowGroups {
  int64_t rows;
  int64_t groups;
  int64_t padding;     // groups start at multiples of this in transposed outputs
  int64_t group_rows;  // 0: jagged
  GroupMetadata jagged;

  static RowGroups of(const GroupMetadata& m) { return {m.rows, m.groups, m.padding, 0, m}; }

  /// Weights (E, N, K): E groups of N rows. A plain matrix: one group.
  static RowGroups equal(int64_t groups, int64_t group_rows, int64_t padding = kTokenRows) {
    return {groups * group_rows, groups, padding, group_rows, {}};
  }

  bool is_jagged() const { return group_rows == 0; }
  /// Rows are counted in 32 bits.
  bool is_valid() const { return rows >= 0 && rows <= INT32_MAX && padding % kTokenRows == 0; }
  int64_t padded_group_rows() const { return (group_rows + padding - 1) / padding * padding; }
  /// Columns of a transposed output: of all groups when jagged, else of one.
  int64_t transposed_columns() const {
    return is_jagged() ? jagged.padded_rows() : padded_group_rows();
  }
};

/// The pieces of one height, as kernels see them.
struct RowChunks {
  const RowChunk* table;  // null: counted off
  int64_t count;
  int32_t height;
  int32_t per_group;
  int32_t group_rows;

  MOE8_DEVICE RowChunk at(int64_t i) const {
    if (table != nullptr) return table[i];
    const int32_t group = static_cast<int32_t>(i / per_group);
    const int32_t in_group = static_cast<int32_t>(i % per_group) * height;
    const int32_t left = group_rows - in_group;
    const int32_t rows = left < 0 ? 0 : left < height ? left : height;
    return {group * group_rows + in_group, rows, group, in_group};
  }
};

inline RowChunks counted_chunks(const RowGroups& g, int64_t rows, int64_t height) {
  const int64_t per_group = (rows + height - 1) / height;
  return {nullptr, g.groups * per_group, static_cast<int32_t>(height),
          static_cast<int32_t>(per_group), static_cast<int32_t>(g.group_rows)};
}

inline RowChunks listed_chunks(const RowChunk* table, int64_t count, int64_t height) {
  return {table, count, static_cast<int32_t>(height), 0, 0};
}

inline RowChunks blocks_of(const RowGroups& g) {
  return g.is_jagged() ? listed_chunks(g.jagged.blocks, g.jagged.block_count(), kBlockRows)
                       : counted_chunks(g, g.group_rows, kBlockRows);
}
inline RowChunks slabs_of(const RowGroups& g) {
  return g.is_jagged() ? listed_chunks(g.jagged.slabs, g.jagged.slab_count(), kSlabRows)
                       : counted_chunks(g, g.group_rows, kSlabRows);
}
inline RowChunks tokens_of(const RowGroups& g) {
  return g.is_jagged() ? listed_chunks(g.jagged.tokens, g.jagged.token_count(), kTokenRows)
                       : counted_chunks(g, g.padded_group_rows(), kTokenRows);
}

/// Equal groups of rows as a part of a larger result: two weights (E, h, K) become one (E, 2 h, K)
/// without a copy of their values. Group g's rows become rows [first, first + their count) of the
/// result's group g.
struct JoinedRows {
  int64_t group_rows = 0;  // of the result's groups; 0: not joined, the result is these rows alone
  int64_t first = 0;

  bool is_joined() const { return group_rows != 0; }
  bool fits(const RowGroups& part) const {
    if (!is_joined()) return first == 0;
    return !part.is_jagged() && first >= 0 && first + part.group_rows <= group_rows;
  }
  bool is_last(const RowGroups& part) const { return first + part.group_rows == group_rows; }
};

}  // namespace moe8::cuda
