// SPDX-License-Identifier: BSD-3-Clause
// FP8: one scale per row, per column of a group, for a whole tensor.
#include "cuda/quantize/float8.h"

#include <cstring>
#include <deque>
#include <numeric>

#include "cuda/quantize/decode_rows.h"
#include "cuda/quantize_check/check.h"
#include "formats/integers.h"
#include "reference/float8.h"

namespace moe8::cuda {
namespace {

Bytes with_pitch(const Bytes& codes, int64_t rows, int64_t columns, int64_t pitch) {
  Bytes out(static_cast<size_t>(rows * pitch));
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(&out[static_cast<size_t>(r * pitch)], &codes[static_cast<size_t>(r * columns)],
                static_cast<size_t>(columns));
  }
  return out;
}

// The values of codes by rows.
Bytes decoded(const Problem& p, const Float8Expected& rows, ElemDtype elem, FloatType type) {
  const Float8Set whole{0, p.columns};
  Bytes values(rows.codes.size() * (type == FloatType::BF16 ? 2 : 4));
  const Float8DequantizeArgs a{.elem = elem,
                               .data = rows.codes.data(),
                               .scale = rows.scale.data(),
                               .outer = p.rows,
                               .length = p.columns,
                               .inner = 1,
                               .sets = &whole,
                               .set_count = 1,
                               .out = values.data(),
                               .out_type = type};
  reference::dequantize_float8(a, 0, a.work_items());
  return with_one_nan(std::move(values), type);
}

}  // namespace

Float8Expected reference_float8(const Problem& p, ElemDtype elem, bool pow2, int64_t outer,
                                int64_t length, int64_t inner, std::vector<Float8Set> sets) {
  Float8Expected e{Bytes(static_cast<size_t>(p.rows * p.columns)),
                   std::vector<float>(static_cast<size_t>(outer * inner) * sets.size())};
  Float8QuantizeArgs a{};
  a.elem = elem;
  a.round_scales_to_power_of_2 = pow2;
  a.x = p.x.data();
  a.x_type = p.type;
  a.outer = outer;
  a.length = length;
  a.inner = inner;
  a.sets = sets.data();
  a.set_count = static_cast<int64_t>(sets.size());
  a.scale = e.scale.data();
  a.data = e.codes.data();
  reference::quantize_float8(a, 0, a.work_items());
  return e;
}

Bytes inverses(const std::vector<float>& scale) {
  std::vector<float> inverse;
  inverse.reserve(scale.size());
  for (const float s : scale) inverse.push_back(1.0f / s);
  return bytes_of(inverse);
}

Bytes transposed(const Problem& p, const Bytes& codes, const Placed& placed) {
  Bytes out(static_cast<size_t>(placed.bytes));
  for (size_t g = 0; g < placed.sets.size(); ++g) {
    for (int64_t i = 0; i < placed.sets[g].size; ++i) {
      for (int64_t c = 0; c < p.columns; ++c) {
        out[static_cast<size_t>(placed.starts[g] + c * placed.pitch + i)] =
            codes[static_cast<size_t>((placed.sets[g].begin + i) * p.columns + c)];
      }
    }
  }
  return out;
}

Placed place_jagged(const Problem& p, const GroupMetadata& m) {
  Placed placed{RowGroups::of(m), {}, {}, m.padded_rows(), m.padded_rows() * p.columns};
  int64_t begin = 0, start = 0;
  for (const int32_t end : p.offs) {
    placed.sets.push_back({begin, end - begin});
    placed.starts.push_back(start);
    start += round_up(end - begin, m.padding);
    begin = end;
  }
  return placed;
}

Placed place_equal(const Problem& p, int64_t groups, int64_t padding) {
  const int64_t group_rows = p.rows / groups;
  const int64_t pitch = round_up(group_rows, padding);
  Placed placed{
      RowGroups::equal(groups, group_rows, padding), {}, {}, pitch, groups * p.columns * pitch};
  for (int64_t g = 0; g < groups; ++g) {
    placed.sets.push_back({g * group_rows, group_rows});
    placed.starts.push_back(g * p.columns * pitch);
  }
  return placed;
}

void check_float8(const Problem& p, const Placed& placed, ElemDtype elem, bool pow2) {
  const std::string what = std::string("float8 ") + kElemNames[static_cast<int>(elem)] +
                           (pow2 ? " pow2 " : " ") + p.name();
  const int64_t pitch = round_up(p.columns, 16);
  const Float8Expected rows =
      reference_float8(p, elem, pow2, p.rows, p.columns, 1, {{0, p.columns}});
  const Float8Expected columns = reference_float8(p, elem, pow2, 1, p.rows, p.columns, placed.sets);

  const DeviceBytes x(p.x);
  const Bytes row_codes = with_pitch(rows.codes, p.rows, p.columns, pitch);
  const Bytes row_inverse = inverses(rows.scale);
  DeviceBytes codes(row_codes.size()), inverse(row_inverse.size());
  DeviceBytes amax(placed.sets.size() * static_cast<size_t>(p.columns) * 4);
  const Float8RowsArgs rows_args{x.get(),
                                 p.type,
                                 p.columns,
                                 placed.groups,
                                 elem,
                                 pow2,
                                 codes.as<uint8_t>(),
                                 pitch,
                                 inverse.as<float>(),
                                 amax.as<uint32_t>()};
  run(what + " rows", {{&codes, &row_codes}, {&inverse, &row_inverse}},
      [&] { return launch_float8_rows(rows_args, nullptr); });

  for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
    const Bytes values = decoded(p, rows, elem, type);
    const DeviceBytes packed(rows.codes), scale(bytes_of(rows.scale));
    DeviceBytes out(values.size());
    run(what + " decoded", {{&out, &values}}, [&] {
      return launch_decode_rows({packed.as<uint8_t>(), scale.as<float>(), nullptr, p.rows,
                                 p.columns, elem, out.get(), type},
                                nullptr);
    });
  }

  const Bytes column_codes = transposed(p, columns.codes, placed);
  const Bytes column_inverse = inverses(columns.scale);
  DeviceBytes xt(column_codes.size()), column_scale(column_inverse.size());
  const Float8TransposedArgs args{x.get(),
                                  p.type,
                                  p.columns,
                                  placed.groups,
                                  elem,
                                  pow2,
                                  amax.as<uint32_t>(),
                                  false,
                                  xt.as<uint8_t>(),
                                  column_scale.as<float>()};
  run(what + " transposed", {{&xt, &column_codes}, {&column_scale, &column_inverse}},
      [&] { return launch_float8_transposed(args, nullptr); });
}

Bytes part_of(const Problem& p, int64_t group_rows, int64_t first, int64_t count) {
  const int64_t row_bytes = static_cast<int64_t>(p.x.size()) / p.rows;
  Bytes part;
  for (int64_t row = first; row < p.rows; row += group_rows) {
    const auto begin = p.x.begin() + row * row_bytes;
    part.insert(part.end(), begin, begin + count * row_bytes);
  }
  return part;
}

void check_joined(const Problem& p, const std::vector<int64_t>& parts, int64_t padding,
                  ElemDtype elem, bool pow2) {
  const int64_t group_rows = std::accumulate(parts.begin(), parts.end(), int64_t{0});
  const int64_t groups = p.rows / group_rows, pitch = round_up(p.columns, 16);
  const std::string what = "float8, " + std::to_string(parts.size()) + " parts joined, " +
                           std::to_string(groups) + " times " + p.name();
  const Placed placed = place_equal(p, groups, padding);
  const Float8Expected rows =
      reference_float8(p, elem, pow2, p.rows, p.columns, 1, {{0, p.columns}});
  const Float8Expected columns = reference_float8(p, elem, pow2, 1, p.rows, p.columns, placed.sets);
  const Bytes row_codes = with_pitch(rows.codes, p.rows, p.columns, pitch);
  const Bytes row_inverse = inverses(rows.scale), column_inverse = inverses(columns.scale);
  const Bytes column_codes = transposed(p, columns.codes, placed);
  DeviceBytes codes(row_codes.size()), inverse(row_inverse.size()), xt(column_codes.size()),
      column_scale(column_inverse.size()), amax(column_inverse.size());

  std::deque<DeviceBytes> sources;
  std::vector<Float8RowsArgs> by_rows;
  std::vector<Float8TransposedArgs> by_columns;
  int64_t first = 0;
  for (const int64_t count : parts) {
    const DeviceBytes& x = sources.emplace_back(part_of(p, group_rows, first, count));
    const Float8Source source{x.get(), p.type, p.columns, RowGroups::equal(groups, count, padding),
                              elem,    pow2};
    const JoinedRows joined{group_rows, first};
    by_rows.push_back({source, codes.as<uint8_t>(), pitch, inverse.as<float>(), amax.as<uint32_t>(),
                       nullptr, joined, first > 0});
    by_columns.push_back({source, amax.as<uint32_t>(), false, xt.as<uint8_t>(),
                          first == 0 ? column_scale.as<float>() : nullptr});
    by_columns.back().joined = joined;
    first += count;
  }
  run(what, {{&codes, &row_codes}, {&inverse, &row_inverse}}, [&] {
    for (const Float8RowsArgs& a : by_rows) require(launch_float8_rows(a, nullptr), "joined rows");
    return LaunchStatus{};
  });
  run(what + ", transposed", {{&xt, &column_codes}, {&column_scale, &column_inverse}}, [&] {
    // In any order: none touches what is another's.
    for (size_t i = by_columns.size(); i-- > 0;) {
      require(launch_float8_transposed(by_columns[i], nullptr), "joined columns");
    }
    return LaunchStatus{};
  });
}

void check_tensorwise(const Problem& p, ElemDtype elem, bool pow2) {
  const std::string what = "float8 tensorwise " + p.name();
  const int64_t count = p.rows * p.columns;
  const Float8Expected e = reference_float8(p, elem, pow2, 1, count, 1, {{0, count}});
  const int64_t pitch = round_up(p.columns, 16);
  const DeviceBytes x(p.x);
  const Bytes expected = with_pitch(e.codes, p.rows, p.columns, pitch);
  const Bytes scale_bytes = bytes_of(e.scale), inverse_bytes = inverses(e.scale);
  DeviceBytes amax(4), codes(expected.size()), scale(4), inverse(4);
  const Float8TensorArgs a{x.get(),
                           p.type,
                           p.columns,
                           RowGroups::equal(1, p.rows),
                           elem,
                           pow2,
                           amax.as<uint32_t>(),
                           codes.as<uint8_t>(),
                           pitch,
                           scale.as<float>(),
                           inverse.as<float>()};
  run(what, {{&codes, &expected}, {&scale, &scale_bytes}, {&inverse, &inverse_bytes}}, [&] {
    require(launch_amax(x.get(), p.type, count, amax.as<uint32_t>(), nullptr), "launch_amax");
    return launch_float8_tensor(a, nullptr);
  });

  const Placed placed = place_equal(p, 1, 16);
  const Bytes turned = transposed(p, e.codes, placed);
  DeviceBytes xt(turned.size());
  const Float8TransposedArgs t{
      x.get(), p.type,           p.columns, placed.groups, elem, pow2, amax.as<uint32_t>(),
      true,    xt.as<uint8_t>(), nullptr};
  run(what + " transposed", {{&xt, &turned}}, [&] { return launch_float8_transposed(t, nullptr); });

  Float8TransposedArgs both = t;
  const auto copies = [&](int64_t n) {
    return inverses(std::vector<float>(static_cast<size_t>(n), e.scale.at(0)));
  };
  const Bytes row_inverse = copies(p.rows), column_inverse = copies(p.columns);
  DeviceBytes row_inverses(row_inverse.size()), column_inverses(column_inverse.size());
  both.inverse_scale = column_inverses.as<float>();
  both.row_codes = codes.as<uint8_t>();
  both.row_pitch = pitch;
  both.row_inverse_scale = row_inverses.as<float>();
  run(what + " both",
      {{&xt, &turned},
       {&codes, &expected},
       {&row_inverses, &row_inverse},
       {&column_inverses, &column_inverse}},
      [&] { return launch_float8_transposed(both, nullptr); });
}

}  // namespace moe8::cuda
