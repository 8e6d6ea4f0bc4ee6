// SPDX-License-Identifier: BSD-3-Clause
// Codes along columns from codes along rows.
#include "cuda/experts/transpose_codes.h"

#include "cuda/experts_check/check.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

/// Where the groups lie in the result.
struct Place {
  std::vector<int32_t> offs;
  std::vector<int64_t> starts;
  int64_t pitch;
  int64_t bytes;
};

Place place_jagged(const Layer& layer, const GroupMetadata& m) {
  Place place{layer.order.offs, {}, m.padded_rows(), m.padded_rows() * layer.columns};
  int64_t start = 0;
  for (const int64_t count : layer.order.counts) {
    place.starts.push_back(start);
    start += round_up(count, m.padding);
  }
  return place;
}

Place place_equal(int64_t groups, int64_t group_rows, int64_t columns, int64_t padding) {
  const int64_t pitch = round_up(group_rows, padding);
  Place place{{}, {}, pitch, groups * columns * pitch};
  for (int64_t g = 0; g < groups; ++g) {
    place.offs.push_back(static_cast<int32_t>((g + 1) * group_rows));
    place.starts.push_back(g * columns * pitch);
  }
  return place;
}

/// `rows` are what is expected to be read, by whatever way `in` has it read.
void check_codes(const std::string& what, const RowCodes& in, const reference::RowCodes& rows,
                 const Place& place) {
  const std::vector<uint32_t> amax = reference::column_amax(rows, place.offs);
  const reference::ColumnCodes expected =
      reference::transpose_codes(rows, place.offs, amax, place.starts, place.pitch, place.bytes);
  const Bytes inverse = bytes_of(expected.inverse_scale);
  const DeviceBytes maxima(bytes_of(amax));
  DeviceBytes codes_out(expected.codes.size()), inverse_out(inverse.size());
  TransposeCodesArgs args{in, maxima.as<uint32_t>(), codes_out.as<uint8_t>(),
                          inverse_out.as<float>()};
  run(what, {{&codes_out, &expected.codes}, {&inverse_out, &inverse}},
      [&] { return launch_transpose_codes(args, nullptr); });
  args.inverse_scale = nullptr;
  run(what + " without scales", {{&codes_out, &expected.codes}},
      [&] { return launch_transpose_codes(args, nullptr); });
}

void check_layer(const Layer& layer, ElemDtype elem, bool broken, int64_t padding,
                 std::mt19937& rng) {
  const reference::RowCodes tokens = random_codes(elem, layer.tokens, layer.columns, broken, rng);
  const reference::RowCodes rows = reference::gather_codes(tokens, layer.order, layer.top_k);
  const DeviceLayer on_device(layer, padding);
  const Place place = place_jagged(layer, on_device.metadata);

  const DeviceBytes codes(tokens.codes), scales(bytes_of(tokens.inverse_scale));
  const RowCodes through{codes.as<uint8_t>(),
                         scales.as<float>(),
                         elem,
                         tokens.columns,
                         tokens.pitch,
                         on_device.groups,
                         on_device.slot_of_row.as<int32_t>(),
                         layer.top_k};
  check_codes("codes turned through the gather, " + layer.name(), through, rows, place);

  const DeviceBytes gathered(rows.codes), gathered_scales(bytes_of(rows.inverse_scale));
  const RowCodes plain{
      gathered.as<uint8_t>(), gathered_scales.as<float>(), elem, rows.columns, rows.pitch,
      on_device.groups};
  check_codes("codes turned, " + layer.name(), plain, rows, place);

  const int64_t groups = layer.rows() % 3 == 0 ? 3 : 1;
  const RowCodes weights{plain.codes, plain.inverse_scale,
                         elem,        rows.columns,
                         rows.pitch,  RowGroups::equal(groups, layer.rows() / groups)};
  check_codes("codes of equal groups turned, " + layer.name(), weights, rows,
              place_equal(groups, layer.rows() / groups, layer.columns, kTokenRows));
}

}  // namespace

void check_transpose_codes(const Layer& layer, std::mt19937& rng) {
  const bool e4m3 = rng() % 2;
  check_layer(layer, e4m3 ? ElemDtype::E4M3 : ElemDtype::E5M2, false, 32, rng);
  check_layer(layer, e4m3 ? ElemDtype::E5M2 : ElemDtype::E4M3, true, 128, rng);
}

}  // namespace moe8::cuda
