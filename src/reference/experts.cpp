// SPDX-License-Identifier: BSD-3-Clause
#include "reference/experts.h"

#include <algorithm>

#include "formats/float8_scale.h"
#include "reference/element.h"

namespace moe8::reference {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// f(group, row) for the rows of all groups.
template <typename F>
void for_each_row(const std::vector<int32_t>& offs, F f) {
  int64_t row = 0;
  for (size_t group = 0; group < offs.size(); ++group) {
    for (; row < offs[group]; ++row) f(static_cast<int64_t>(group), row);
  }
}

}  // namespace

ExpertOrder expert_order(const std::vector<int64_t>& experts, int64_t groups) {
  ExpertOrder order;
  order.row_of_slot.resize(experts.size());
  const auto take = [&](auto wanted) {
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      if (!wanted(experts[slot])) continue;
      order.row_of_slot[slot] = static_cast<int32_t>(order.slot_of_row.size());
      order.slot_of_row.push_back(static_cast<int32_t>(slot));
    }
    return static_cast<int32_t>(order.slot_of_row.size());
  };
  int32_t begin = 0;
  for (int64_t group = 0; group < groups; ++group) {
    order.offs.push_back(take([&](int64_t expert) { return expert == group; }));
    order.counts.push_back(order.offs.back() - begin);
    begin = order.offs.back();
  }
  take([&](int64_t expert) { return expert < 0 || expert >= groups; });
  return order;
}

std::vector<uint8_t> gather_rows(const std::vector<uint8_t>& in, int64_t row_bytes,
                                 const ExpertOrder& order, int64_t top_k) {
  std::vector<uint8_t> out(order.slot_of_row.size() * at(row_bytes));
  for (int64_t row = 0; row < order.rows_in_groups(); ++row) {
    const int64_t token = order.slot_of_row[at(row)] / top_k;
    std::copy_n(in.begin() + token * row_bytes, row_bytes, out.begin() + row * row_bytes);
  }
  return out;
}

float RowCodes::value(int64_t row, int64_t column) const {
  return decode(codes[at(row * pitch + column)], elem) * inverse_scale[at(row)];
}

RowCodes gather_codes(const RowCodes& tokens, const ExpertOrder& order, int64_t top_k) {
  RowCodes out = tokens;
  out.codes = gather_rows(tokens.codes, tokens.pitch, order, top_k);
  out.inverse_scale.assign(order.slot_of_row.size(), 1.0f);
  for (int64_t row = 0; row < order.rows_in_groups(); ++row) {
    out.inverse_scale[at(row)] = tokens.inverse_scale[at(order.slot_of_row[at(row)] / top_k)];
  }
  return out;
}

std::vector<uint32_t> column_amax(const RowCodes& rows, const std::vector<int32_t>& offs) {
  std::vector<uint32_t> amax(offs.size() * at(rows.columns));
  for_each_row(offs, [&](int64_t group, int64_t row) {
    for (int64_t c = 0; c < rows.columns; ++c) {
      const uint32_t bits = magnitude_bits(rows.value(row, c));
      uint32_t& largest = amax[at(group * rows.columns + c)];
      largest = std::max(largest, bits > 0x7F800000u ? 0x7FC00000u : bits);
    }
  });
  return amax;
}

ColumnCodes transpose_codes(const RowCodes& rows, const std::vector<int32_t>& offs,
                            const std::vector<uint32_t>& amax, const std::vector<int64_t>& starts,
                            int64_t pitch, int64_t bytes) {
  ColumnCodes out{std::vector<uint8_t>(at(bytes)), {}};
  std::vector<float> scales;
  for (const uint32_t bits : amax) {
    scales.push_back(float8_scale(bits, rows.elem, true));
    out.inverse_scale.push_back(1.0f / scales.back());
  }
  for_each_row(offs, [&](int64_t group, int64_t row) {
    const int64_t in_group = row - (group == 0 ? 0 : offs[at(group - 1)]);
    for (int64_t c = 0; c < rows.columns; ++c) {
      const float scaled = rows.value(row, c) * scales[at(group * rows.columns + c)];
      out.codes[at(starts[at(group)] + c * pitch + in_group)] =
          static_cast<uint8_t>(encode(scaled, rows.elem));
    }
  });
  return out;
}

void combine(const Combine& a) {
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t c = 0; c < a.columns; ++c) {
      float sum = 0.0f;
      for (int64_t slot = t * a.top_k; slot < (t + 1) * a.top_k; ++slot) {
        const int64_t row = a.order->row_of_slot[at(slot)];
        if (row >= a.order->rows_in_groups()) continue;
        float y = load(a.rows, a.rows_type, row * a.columns + c);
        if (a.bias) y = y + load(a.bias, a.bias_type, a.experts[slot] * a.columns + c);
        if (a.scores) y = a.scores[slot] * y;
        sum = sum + y;
      }
      store(a.out, a.out_type, t * a.columns + c, sum);
    }
  }
}

}  // namespace moe8::reference
