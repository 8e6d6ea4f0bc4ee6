// SPDX-License-Identifier: BSD-3-Clause
// MX: codes, scales and values along both axes.
#include "cuda/quantize/mx.h"

#include <deque>
#include <numeric>

#include "cuda/quantize/decode_rows.h"
#include "cuda/quantize_check/check.h"
#include "reference/mx.h"

namespace moe8::cuda {
MxExpected reference_mx(const Problem& p, ElemDtype elem, ScaleCalculationMode mode,
                        FloatType values, int64_t outer, int64_t length, int64_t inner,
                        const std::vector<MxBlock>& blocks, int64_t scale_rows) {
  const auto count = static_cast<size_t>(p.rows * p.columns);
  MxExpected e{Bytes(count), Bytes(count * (values == FloatType::BF16 ? 2 : 4)),
               Bytes(static_cast<size_t>(outer * scale_rows * inner))};
  MxQuantizeArgs a{};
  a.elem = elem;
  a.mode = mode;
  a.x = p.x.data();
  a.x_type = p.type;
  a.outer = outer;
  a.length = length;
  a.inner = inner;
  a.blocks = blocks.data();
  a.block_count = static_cast<int64_t>(blocks.size());
  a.scale_rows = scale_rows;
  a.data = e.codes.data();
  a.scale = e.scale.data();
  a.dequantized = e.values.data();
  a.dequantized_type = values;
  reference::quantize_mx(a, 0, a.work_items());
  return e;
}

void check_mx(const Problem& p, const RowGroups& groups, int64_t equal_groups, ElemDtype elem,
              ScaleCalculationMode mode, FloatType values_type) {
  const std::string what = std::string("mx ") + kElemNames[static_cast<int>(elem)] + " mode " +
                           std::to_string(static_cast<int>(mode)) + " " + p.name();
  const auto row_blocks = mx_blocks(p.columns, nullptr, 0);
  const MxExpected rows = reference_mx(p, elem, mode, values_type, p.rows, p.columns, 1, row_blocks,
                                       static_cast<int64_t>(row_blocks.size()));
  MxExpected columns;
  int64_t scale_rows = 0;
  if (equal_groups > 0) {
    const auto blocks = mx_blocks(p.rows / equal_groups, nullptr, 0);
    scale_rows = static_cast<int64_t>(blocks.size()) * equal_groups;
    columns = reference_mx(p, elem, mode, values_type, equal_groups, p.rows / equal_groups,
                           p.columns, blocks, static_cast<int64_t>(blocks.size()));
  } else {
    const auto blocks = mx_blocks(p.rows, p.offs.data(), static_cast<int64_t>(p.offs.size()));
    scale_rows = (p.rows + 31 * static_cast<int64_t>(p.offs.size())) / 32;
    columns = reference_mx(p, elem, mode, values_type, 1, p.rows, p.columns, blocks, scale_rows);
  }

  const DeviceBytes x(p.x);
  MxArgs a{x.get(), p.type, p.columns, groups, elem, mode, {}, {}, scale_rows, values_type};
  for (const bool values : {true, false}) {
    const Bytes& row_expected = values ? rows.values : rows.codes;
    const Bytes& column_expected = values ? columns.values : columns.codes;
    DeviceBytes row_data(row_expected.size()), row_scale(rows.scale.size());
    DeviceBytes column_data(column_expected.size()), column_scale(columns.scale.size());
    const auto outputs = [&](const DeviceBytes& data, const DeviceBytes& scale) {
      return MxOutputs{values ? data.get() : nullptr, values ? nullptr : data.as<uint8_t>(),
                       scale.as<uint8_t>()};
    };
    a.row_blocks = outputs(row_data, row_scale);
    a.column_blocks = outputs(column_data, column_scale);
    run(what + (values ? " values" : " codes"),
        {{&row_data, &row_expected},
         {&row_scale, &rows.scale},
         {&column_data, &column_expected},
         {&column_scale, &columns.scale}},
        [&] { return launch_mx(a, nullptr); });
  }
  if (elem != ElemDtype::E4M3 && elem != ElemDtype::E5M2) return;
  const Bytes values = with_one_nan(rows.values, values_type);
  const DeviceBytes codes(rows.codes), scale(rows.scale);
  DeviceBytes out(values.size());
  run(what + " decoded", {{&out, &values}}, [&] {
    return launch_decode_rows({codes.as<uint8_t>(), nullptr, scale.as<uint8_t>(), p.rows, p.columns,
                               elem, out.get(), values_type},
                              nullptr);
  });
}

void check_joined_mx(const Problem& p, const std::vector<int64_t>& parts, ElemDtype elem,
                     ScaleCalculationMode mode, FloatType values_type) {
  const int64_t group_rows = std::accumulate(parts.begin(), parts.end(), int64_t{0});
  const int64_t groups = p.rows / group_rows;
  const auto row_blocks = mx_blocks(p.columns, nullptr, 0);
  const auto column_blocks = mx_blocks(group_rows, nullptr, 0);
  const MxExpected rows = reference_mx(p, elem, mode, values_type, p.rows, p.columns, 1, row_blocks,
                                       static_cast<int64_t>(row_blocks.size()));
  const MxExpected columns =
      reference_mx(p, elem, mode, values_type, groups, group_rows, p.columns, column_blocks,
                   static_cast<int64_t>(column_blocks.size()));
  DeviceBytes row_values(rows.values.size()), column_values(columns.values.size());
  std::deque<DeviceBytes> sources;
  std::vector<MxArgs> launches;
  int64_t first = 0;
  for (const int64_t count : parts) {
    const DeviceBytes& x = sources.emplace_back(part_of(p, group_rows, first, count));
    launches.push_back({x.get(), p.type, p.columns, RowGroups::equal(groups, count), elem, mode,
                        MxOutputs{row_values.get()}, MxOutputs{column_values.get()}, 0, values_type,
                        JoinedRows{group_rows, first}});
    first += count;
  }
  run("mx, " + std::to_string(parts.size()) + " parts joined, " + p.name(),
      {{&row_values, &rows.values}, {&column_values, &columns.values}}, [&] {
        for (const MxArgs& a : launches) require(launch_mx(a, nullptr), "joined values");
        return LaunchStatus{};
      });
}

}  // namespace moe8::cuda
