// SPDX-License-Identifier: BSD-3-Clause
// What an expert layer does between its products, written to be read: the definition that the
// kernels of src/cuda/experts/ equal bit for bit. A slot is a token's choice t * k + j, a row a
// slot in the order of experts; the rows past the last group belong to no expert.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8::reference {

struct ExpertOrder {
  std::vector<int32_t> offs;         // [groups] end rows
  std::vector<int64_t> counts;       // [groups]
  std::vector<int32_t> slot_of_row;  // [slots]
  std::vector<int32_t> row_of_slot;  // [slots]

  int64_t rows_in_groups() const { return offs.empty() ? 0 : offs.back(); }
};

/// Slots by expert, those of one expert in their order, those of no expert in [0, groups) last.
ExpertOrder expert_order(const std::vector<int64_t>& experts, int64_t groups);

/// out[row] = in[slot_of_row[row] / top_k], rows of `row_bytes`; zeros past the last group.
std::vector<uint8_t> gather_rows(const std::vector<uint8_t>& in, int64_t row_bytes,
                                 const ExpertOrder& order, int64_t top_k);

/// FP8 codes by rows: decode(codes[row * pitch + column]) * inverse_scale[row].
struct RowCodes {
  ElemDtype elem;
  int64_t columns;
  int64_t pitch;
  std::vector<uint8_t> codes;
  std::vector<float> inverse_scale;

  float value(int64_t row, int64_t column) const;
};

/// The codes of tokens in the order of rows; past the last group zeros and inverse scales of 1.
RowCodes gather_codes(const RowCodes& tokens, const ExpertOrder& order, int64_t top_k);

/// [groups, columns] float32 bits of the largest |value|; NaN, larger than all, is 0x7FC00000.
std::vector<uint32_t> column_amax(const RowCodes& rows, const std::vector<int32_t>& offs);

/// FP8 codes by columns: those of group g lie from `starts[g]` on, `pitch` apart from column to
/// column.
struct ColumnCodes {
  std::vector<uint8_t> codes;        // what no group writes is zero
  std::vector<float> inverse_scale;  // [groups, columns]
};

/// encode(value * scale) with the power-of-two scale of the amax of each group and column.
ColumnCodes transpose_codes(const RowCodes& rows, const std::vector<int32_t>& offs,
                            const std::vector<uint32_t>& amax, const std::vector<int64_t>& starts,
                            int64_t pitch, int64_t bytes);

/// Pointers that are null: not there. What they hold: src/cuda/experts/combine.h.
struct Combine {
  const void* rows;
  FloatType rows_type;
  int64_t tokens;
  int64_t top_k;
  int64_t columns;
  const ExpertOrder* order;
  const float* scores;
  const void* bias;
  FloatType bias_type;
  const int64_t* experts;
  void* out;
  FloatType out_type;
};

/// out[t] = sum over j of scores[s] * (rows[row_of_slot[s]] + bias[experts[s]]), s = t * top_k + j.
void combine(const Combine& args);

}  // namespace moe8::reference
