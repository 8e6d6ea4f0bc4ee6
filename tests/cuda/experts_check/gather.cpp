// SPDX-License-Identifier: BSD-3-Clause
// Rows and codes into the order of experts.
#include "cuda/experts/gather.h"

#include "cuda/experts_check/check.h"

namespace moe8::cuda {
namespace {

// `offset`: bytes past an aligned address, for the slow ways.
void check_rows(const Layer& layer, int64_t row_bytes, int64_t offset, bool has_end,
                std::mt19937& rng) {
  const DeviceLayer on_device(layer);
  Bytes in(static_cast<size_t>(layer.tokens * row_bytes));
  for (uint8_t& b : in) b = static_cast<uint8_t>(rng());
  Bytes shifted(static_cast<size_t>(offset));
  shifted.insert(shifted.end(), in.begin(), in.end());
  reference::ExpertOrder order = layer.order;
  if (!has_end) order.offs = {static_cast<int32_t>(layer.rows())};
  const Bytes expected = reference::gather_rows(in, row_bytes, order, layer.top_k);
  const DeviceBytes source(shifted);
  DeviceBytes out(expected.size());
  run("gathered rows of " + std::to_string(row_bytes) + " bytes, " + layer.name(),
      {{&out, &expected}}, [&] {
        return launch_gather_rows({source.as<uint8_t>() + offset, layer.tokens, row_bytes,
                                   layer.top_k, on_device.row_of_slot.as<int32_t>(),
                                   has_end ? on_device.rows_in_groups : nullptr, out.get()},
                                  nullptr);
      });
  // The rows in groups alone: what lies behind them stays as it was.
  const int64_t rows = order.offs.empty() ? 0 : order.offs.back();
  const Bytes first(expected.begin(), expected.begin() + rows * row_bytes);
  DeviceBytes first_out(first.size());
  run("the first rows of " + std::to_string(row_bytes) + " bytes, " + layer.name(),
      {{&first_out, &first}}, [&] {
        return launch_gather_rows(
            {source.as<uint8_t>() + offset, layer.tokens, row_bytes, layer.top_k,
             on_device.row_of_slot.as<int32_t>(), has_end ? on_device.rows_in_groups : nullptr,
             first_out.get(), rows},
            nullptr);
      });
}

void check_codes(const Layer& layer, ElemDtype elem, bool broken, std::mt19937& rng) {
  const reference::RowCodes tokens = random_codes(elem, layer.tokens, layer.columns, broken, rng);
  const reference::RowCodes rows = reference::gather_codes(tokens, layer.order, layer.top_k);
  const Bytes inverse = bytes_of(rows.inverse_scale);
  const Bytes amax = bytes_of(reference::column_amax(rows, layer.order.offs));

  const DeviceLayer on_device(layer);
  const DeviceBytes codes(tokens.codes), scales(bytes_of(tokens.inverse_scale));
  DeviceBytes codes_out(rows.codes.size()), inverse_out(inverse.size()), amax_out(amax.size());
  GatherCodesArgs args{{codes.as<uint8_t>(), scales.as<float>(), elem, tokens.columns, tokens.pitch,
                        on_device.groups, on_device.slot_of_row.as<int32_t>(), layer.top_k},
                       on_device.row_of_slot.as<int32_t>(),
                       codes_out.as<uint8_t>(),
                       inverse_out.as<float>(),
                       amax_out.as<uint32_t>()};
  run("gathered codes with column amax, " + layer.name(),
      {{&codes_out, &rows.codes}, {&inverse_out, &inverse}, {&amax_out, &amax}},
      [&] { return launch_gather_codes(args, nullptr); });
  args.column_amax = nullptr;
  run("gathered codes, " + layer.name(), {{&codes_out, &rows.codes}, {&inverse_out, &inverse}},
      [&] { return launch_gather_codes(args, nullptr); });
}

}  // namespace

void check_gather(const Layer& layer, std::mt19937& rng) {
  check_rows(layer, layer.columns * 2, 0, true, rng);
  check_rows(layer, layer.columns * 4, 4, true, rng);
  check_rows(layer, layer.columns, 1, rng() % 2, rng);
  const bool e4m3 = rng() % 2;
  check_codes(layer, e4m3 ? ElemDtype::E4M3 : ElemDtype::E5M2, false, rng);
  check_codes(layer, e4m3 ? ElemDtype::E5M2 : ElemDtype::E4M3, true, rng);
}

}  // namespace moe8::cuda
