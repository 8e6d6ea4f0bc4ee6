// SPDX-License-Identifier: BSD-3-Clause
// Scales in the layout of block-scaled tensor cores.
#include "cuda/quantize/blocked_scales.h"

#include "cuda/quantize_check/check.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

/// The definition: [row tile, 4 x 32 rows, column tile, 4 columns] -> tile by tile [32, 4, 4].
void block_into(const Bytes& scale, int64_t pitch, int64_t row0, int64_t rows, int64_t column0,
                int64_t columns, uint8_t* out) {
  const int64_t column_tiles = round_up(columns, 4) / 4;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t tile = r / 128 * column_tiles + c / 4;
      out[tile * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4] =
          scale[static_cast<size_t>((row0 + r) * pitch + column0 + c)];
    }
  }
}

}  // namespace

void check_blocked(int64_t rows, int64_t columns, const std::vector<int32_t>& offs,
                   std::mt19937& rng) {
  const auto groups = static_cast<int64_t>(offs.size());
  Bytes scale(static_cast<size_t>(rows * columns));
  for (uint8_t& b : scale) b = static_cast<uint8_t>(rng());
  const DeviceBytes source(scale);
  const DeviceBytes ends(bytes_of(offs));
  const std::string what = "blocked scales [" + std::to_string(rows) + ", " +
                           std::to_string(columns) + "] of " + std::to_string(groups);

  Bytes grouped(static_cast<size_t>((rows + 128 * groups) * round_up(columns, 4)));
  std::vector<int64_t> starts{0};
  int64_t begin = 0;
  for (const int32_t end : offs) {
    block_into(scale, columns, begin, end - begin, 0, columns,
               grouped.data() + starts.back() * round_up(columns, 4));
    starts.push_back(starts.back() + round_up(end - begin, 128));
    begin = end;
  }
  const Bytes starts_bytes = bytes_of(starts);
  DeviceBytes m_out(grouped.size()), m_starts(starts_bytes.size());
  run(what + " M groups", {{&m_out, &grouped}, {&m_starts, &starts_bytes}}, [&] {
    return launch_blocked_scales_m_groups({source.as<uint8_t>(), rows, columns, ends.as<int32_t>(),
                                           groups, m_out.as<uint8_t>(), m_starts.as<int64_t>()},
                                          nullptr);
  });

  // The same bytes seen as [columns, rows]: groups along the second axis.
  const int64_t padded = round_up(columns, 128);
  Bytes k_grouped(static_cast<size_t>(padded * (rows + 4 * groups)));
  starts = {0};
  begin = 0;
  for (const int32_t end : offs) {
    block_into(scale, rows, 0, columns, begin, end - begin,
               k_grouped.data() + padded * starts.back());
    starts.push_back(starts.back() + round_up(end - begin, 4));
    begin = end;
  }
  const Bytes k_starts_bytes = bytes_of(starts);
  DeviceBytes k_out(k_grouped.size()), k_starts(k_starts_bytes.size());
  run(what + " K groups", {{&k_out, &k_grouped}, {&k_starts, &k_starts_bytes}}, [&] {
    return launch_blocked_scales_k_groups({source.as<uint8_t>(), columns, rows, ends.as<int32_t>(),
                                           groups, k_out.as<uint8_t>(), k_starts.as<int64_t>()},
                                          nullptr);
  });
}

}  // namespace moe8::cuda
