// SPDX-License-Identifier: BSD-3-Clause
// Compares the CUDA quantizers with src/reference/, byte for byte: fixed shapes with every format,
// then random ones. A program of its own, without Torch: `quantize_check [RANDOM_SHAPES]`.
// Outputs lie poisoned between guards; each launch is done twice.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/groups/group_metadata.h"
#include "cuda/quantize/blocked_scales.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "formats/integers.h"
#include "kernels/float8_args.h"
#include "kernels/mx_args.h"
#include "reference/float8.h"
#include "reference/mx.h"

namespace moe8::cuda {
namespace {

using Bytes = std::vector<uint8_t>;
using enum ElemDtype;
using enum ScaleCalculationMode;

constexpr ElemDtype kElems[] = {E4M3, E5M2, E2M3, E3M2, E2M1};
constexpr const char* kElemNames[] = {"e4m3", "e5m2", "e2m3", "e3m2", "e2m1"};
constexpr ScaleCalculationMode kModes[] = {FLOOR, RCEIL, CEIL, EVEN};

int failures = 0;
int64_t compared = 0;

// ---- buffers

using DeviceBytes = testing::DeviceBuffer<uint8_t>;
using testing::require;

template <typename T>
Bytes bytes_of(const std::vector<T>& v) {
  Bytes bytes(v.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), v.data(), bytes.size());
  return bytes;
}

void expect_equal(const std::string& what, const DeviceBytes& actual, const Bytes& expected) {
  const Bytes got = actual.is_intact() ? actual.host() : Bytes{};
  compared += static_cast<int64_t>(expected.size());
  if (got == expected) return;
  if (++failures > 20) return;
  if (got.size() != expected.size()) {
    std::printf("FAILED %s: wrote outside its %zu bytes\n", what.c_str(), expected.size());
    return;
  }
  size_t first = 0, count = 0;
  for (size_t i = expected.size(); i-- > 0;) {
    if (got[i] != expected[i]) first = i, ++count;
  }
  std::printf("FAILED %s: %zu of %zu bytes differ, first %zu: expected %02x, got %02x\n",
              what.c_str(), count, expected.size(), first, expected[first], got[first]);
}

/// Runs `launch` twice on poisoned outputs, comparing both times.
template <typename Launch>
void run(const std::string& what, std::vector<std::pair<DeviceBytes*, const Bytes*>> outputs,
         Launch launch) {
  for (int time = 0; time < 2; ++time) {
    for (auto& [out, _] : outputs) out->poison();
    require(launch(), what.c_str());
    require(cudaDeviceSynchronize(), what.c_str());
    for (size_t i = 0; i < outputs.size(); ++i) {
      expect_equal(what + " output " + std::to_string(i), *outputs[i].first, *outputs[i].second);
    }
  }
}

// ---- inputs

enum class Fill { NORMAL, WIDE, HARD };
constexpr Fill kFills[] = {Fill::NORMAL, Fill::WIDE, Fill::HARD};

struct Problem {
  FloatType type;
  int64_t columns;
  std::vector<int32_t> offs;
  int64_t rows;
  Fill fill;
  Bytes x;

  std::string name() const {
    return std::string(type == FloatType::BF16 ? "bf16" : "f32") + " [" + std::to_string(rows) +
           ", " + std::to_string(columns) + "] in " + std::to_string(offs.size()) +
           " groups, fill " + std::to_string(static_cast<int>(fill));
  }
};

// Ties of each format, the ends of the ranges of all, both zeros.
uint32_t hard_bits(std::mt19937& rng) {
  constexpr uint32_t kBits[] = {
      0x00000000, 0x00010000, 0x007F0000, 0x00800000, 0x00000001, 0x007FFFFF, 0x7F7F0000,
      0x7F7FFFFF, 0x43E00000, 0x43E80000, 0x43E00001, 0x47600000, 0x47680000, 0x3F800000,
      0x3F880000, 0x3F980000, 0x3FA00000, 0x3FC00000, 0x3FE00000, 0x40F00000, 0x40C00000,
      0x41E00000, 0x2B8CBCCC, 0x2B8CBCCD, 0x2B800000, 0x2B600000, 0x3C800000, 0x3C000000};
  const uint32_t r = rng();
  const uint32_t sign = (r & 1) << 31;
  if (r % 5 < 2) return sign | kBits[rng() % std::size(kBits)];
  if (r % 5 < 4) return (r & 0x007F0000) | (rng() % 255) << 23 | sign;         // any exponent
  return sign | (120 + rng() % 12) << 23 | (rng() & 7) << 20 | (r & 0x80000);  // ties
}

Problem make_problem(FloatType type, int64_t columns, std::vector<int32_t> offs, int64_t rows,
                     Fill fill, std::mt19937& rng) {
  Problem p{type, columns, std::move(offs), rows, fill, {}};
  std::normal_distribution<float> normal;
  // HARD: a power of two for the row and only a few NaN and Inf, lest one poisons all.
  int row_shift = 0;
  std::vector<uint32_t> bits(static_cast<size_t>(rows * columns));
  for (size_t i = 0; i < bits.size(); ++i) {
    if (i % static_cast<size_t>(columns) == 0) row_shift = static_cast<int>(rng() % 200) - 100;
    float value = normal(rng);
    if (fill == Fill::WIDE) value = std::ldexp(value, row_shift - static_cast<int>(rng() % 30));
    bits[i] = std::bit_cast<uint32_t>(value);
    if (fill == Fill::HARD) {
      bits[i] = hard_bits(rng);
      const uint32_t r = rng() % 4000;
      if (r == 0) bits[i] = 0x7F800000 | (rng() & 0x80000000);
      if (r == 1) bits[i] = 0x7FC10000 | (rng() & 0x80000000);
    }
  }
  if (type == FloatType::F32) {
    p.x = bytes_of(bits);
  } else {
    std::vector<uint16_t> halves(bits.size());
    for (size_t i = 0; i < bits.size(); ++i) {
      halves[i] = fill == Fill::HARD ? static_cast<uint16_t>(bits[i] >> 16)
                                     : from_float<BFloat16>(std::bit_cast<float>(bits[i])).bits;
    }
    p.x = bytes_of(halves);
  }
  return p;
}

std::vector<int32_t> ends_of(const std::vector<int32_t>& sizes) {
  std::vector<int32_t> ends;
  int32_t end = 0;
  for (const int32_t size : sizes) ends.push_back(end += size);
  return ends;
}

// ---- metadata

struct Metadata {
  Metadata(const Problem& p, int64_t padding)
      : offs(bytes_of(p.offs)),
        memory(static_cast<size_t>(
            group_metadata_bytes(p.rows, static_cast<int64_t>(p.offs.size()), padding))),
        m(group_metadata(memory.get(), p.rows, static_cast<int64_t>(p.offs.size()), padding)) {
    require(launch_group_metadata(offs.as<int32_t>(), m, nullptr), "launch_group_metadata");
  }
  DeviceBytes offs, memory;
  GroupMetadata m;
};

template <typename T>
std::vector<T> fetch(const T* p, int64_t count) {
  std::vector<T> v(static_cast<size_t>(count));
  require(cudaMemcpy(v.data(), p, v.size() * sizeof(T), cudaMemcpyDeviceToHost), "fetch");
  return v;
}

void expect(bool condition, const std::string& what) {
  ++compared;
  if (!condition && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

std::vector<RowChunk> expected_chunks(const Problem& p, int64_t height, int64_t count) {
  std::vector<RowChunk> chunks;
  int32_t begin = 0;
  const auto cut = [&](int32_t end, int32_t group) {
    for (int32_t row = begin; row < end; row += static_cast<int32_t>(height)) {
      const auto rows = std::min<int32_t>(end - row, static_cast<int32_t>(height));
      chunks.push_back({row, rows, group, group == kNoGroup ? 0 : row - begin});
    }
    begin = end;
  };
  for (size_t g = 0; g < p.offs.size(); ++g) cut(p.offs[g], static_cast<int32_t>(g));
  cut(static_cast<int32_t>(p.rows), kNoGroup);
  chunks.resize(static_cast<size_t>(count), RowChunk{0, 0, kNoGroup, 0});
  return chunks;
}

bool same(const std::vector<RowChunk>& a, const std::vector<RowChunk>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(RowChunk)) == 0);
}

void check_metadata(const Problem& p, int64_t padding) {
  const Metadata metadata(p, padding);
  const GroupMetadata& m = metadata.m;
  const std::string what = "metadata of " + p.name();
  std::vector<int32_t> begins{0}, padded{0};
  std::vector<RowChunk> tokens;
  for (size_t g = 0; g < p.offs.size(); ++g) {
    const int32_t size = p.offs[g] - begins.back();
    const auto pad = static_cast<int32_t>(padding);
    const int32_t padded_size = (size + pad - 1) / pad * pad;
    for (int32_t i = 0; i < padded_size; i += kTokenRows) {
      const int32_t rows = std::clamp<int32_t>(size - i, 0, kTokenRows);
      tokens.push_back({rows > 0 ? begins.back() + i : 0, rows, static_cast<int32_t>(g), i});
    }
    padded.push_back(padded.back() + padded_size);
    begins.push_back(p.offs[g]);
  }
  const auto count = static_cast<int64_t>(begins.size());
  tokens.resize(static_cast<size_t>(m.token_count()), RowChunk{0, 0, kNoGroup, 0});
  expect(fetch(m.begins, count) == begins, what + ": begins");
  expect(fetch(m.padded_starts, count) == padded, what + ": padded starts");
  expect(same(fetch(m.blocks, m.block_count()), expected_chunks(p, 32, m.block_count())),
         what + ": blocks");
  expect(same(fetch(m.slabs, m.slab_count()), expected_chunks(p, 64, m.slab_count())),
         what + ": slabs");
  expect(same(fetch(m.tokens, m.token_count()), tokens), what + ": tokens");
  expect(metadata.memory.is_intact(), what + ": wrote outside its memory");
}

void check_invalid_offs() {
  for (const std::vector<int32_t>& offs :
       {std::vector<int32_t>{5, 3, 9}, {-1, 3, 9}, {5, 7, 101}, {2147483647, -5, 100}}) {
    Problem p{FloatType::BF16, 1, offs, 100, Fill::NORMAL, {}};
    const Metadata metadata(p, 32);
    for (const RowChunk& c : fetch(metadata.m.blocks, metadata.m.block_count())) {
      expect(c.row >= 0 && c.rows >= 0 && c.row + c.rows <= 100, "a chunk leaves the tensor");
    }
  }
}

// ---- FP8

struct Float8Expected {
  Bytes codes;               // layout of x
  std::vector<float> scale;  // one a set
};

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
  for (const float s : scale) inverse.push_back(1.0f / s);
  return bytes_of(inverse);
}

Bytes with_pitch(const Bytes& codes, int64_t rows, int64_t columns, int64_t pitch) {
  Bytes out(static_cast<size_t>(rows * pitch));
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(&out[static_cast<size_t>(r * pitch)], &codes[static_cast<size_t>(r * columns)],
                static_cast<size_t>(columns));
  }
  return out;
}

/// The groups of the rows and where each one's transposed codes start and how wide they are.
struct Placed {
  RowGroups groups;
  std::vector<Float8Set> sets;  // in rows
  std::vector<int64_t> starts;  // byte of (group, column 0, row 0)
  int64_t pitch;
  int64_t bytes;
};

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

// ---- MX

struct MxExpected {
  Bytes codes, values, scale;
};

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

/// `equal_groups` 0: p's own groups.
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
}

// ---- blocked scales

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

// ---- graphs

// One graph, captured once, replayed with other groups: nothing may have been read on the host.
void check_graph(std::mt19937& rng) {
  Problem p = make_problem(FloatType::BF16, 104, ends_of({100, 50, 150}), 310, Fill::WIDE, rng);
  const Metadata metadata(p, 32);
  const DeviceBytes x(p.x);
  const auto count = p.x.size() / 2;
  DeviceBytes codes(310 * 112), inverse(310 * 4), amax(3 * 104 * 4), column_scale(3 * 104 * 4);
  DeviceBytes xt(static_cast<size_t>(metadata.m.padded_rows() * p.columns)), values(2 * count);
  const RowGroups groups = RowGroups::of(metadata.m);
  MxArgs mx{x.get(), p.type, p.columns, groups, E4M3, RCEIL, {}, {}, 0, FloatType::BF16};
  mx.column_blocks.values = values.get();

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  require(cudaStreamCreate(&stream), "stream");
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  require(launch_group_metadata(metadata.offs.as<int32_t>(), metadata.m, stream), "metadata");
  require(launch_float8_rows({x.get(), p.type, p.columns, groups, E4M3, true, codes.as<uint8_t>(),
                              112, inverse.as<float>(), amax.as<uint32_t>()},
                             stream),
          "rows");
  require(
      launch_float8_transposed({x.get(), p.type, p.columns, groups, E4M3, true, amax.as<uint32_t>(),
                                false, xt.as<uint8_t>(), column_scale.as<float>()},
                               stream),
      "transposed");
  require(launch_mx(mx, stream), "mx");
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&replay, graph, 0), "instantiate");

  for (const std::vector<int32_t>& offs :
       {std::vector<int32_t>{100, 150, 300}, {0, 310, 310}, {33, 34, 99}}) {
    p.offs = offs;
    require(cudaMemcpy(metadata.offs.get(), offs.data(), 12, cudaMemcpyHostToDevice), "offs");
    xt.poison();
    values.poison();
    require(cudaGraphLaunch(replay, stream), "replay");
    require(cudaStreamSynchronize(stream), "replay");
    const Placed placed = place_jagged(p, metadata.m);
    const Float8Expected e = reference_float8(p, E4M3, true, 1, p.rows, p.columns, placed.sets);
    expect_equal("replayed graph: transposed", xt, transposed(p, e.codes, placed));
    expect_equal("replayed graph: scales", column_scale, inverses(e.scale));
    const auto blocks = mx_blocks(p.rows, offs.data(), 3);
    expect_equal("replayed graph: mx", values,
                 reference_mx(p, E4M3, RCEIL, FloatType::BF16, 1, p.rows, p.columns, blocks,
                              static_cast<int64_t>(blocks.size()))
                     .values);
  }
  require(cudaGraphExecDestroy(replay), "graph");
  require(cudaGraphDestroy(graph), "graph");
  require(cudaStreamDestroy(stream), "stream");
}

// ---- what is run

const std::vector<int32_t> kRagged = {0, 1, 31, 32, 33, 127, 128, 129, 0, 5};

void check_fixed_shapes(std::mt19937& rng) {
  const std::vector<int32_t> many = [&] {
    std::vector<int32_t> sizes(1024);
    for (int32_t& size : sizes) size = static_cast<int32_t>(rng() % 3);
    return sizes;
  }();
  struct Case {
    std::vector<int32_t> sizes;
    int64_t tail;
    int64_t columns;
  };
  const Case cases[] = {{kRagged, 7, 40},        {kRagged, 0, 101}, {kRagged, 70, 64},
                        {many, 3, 24},           {{300}, 0, 33},    {{0, 0, 0}, 5, 16},
                        {{0, 200, 0}, 100, 136}, {{1}, 0, 1}};
  for (const Case& c : cases) {
    const auto ends = ends_of(c.sizes);
    for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
      for (const Fill fill : kFills) {
        const Problem p = make_problem(type, c.columns, ends, ends.back() + c.tail, fill, rng);
        check_metadata(p, 32);
        check_metadata(p, 128);
        const Metadata metadata(p, 32);
        const Placed jagged = place_jagged(p, metadata.m);
        for (const ElemDtype elem : {E4M3, E5M2}) {
          for (const bool pow2 : {true, false}) {
            check_float8(p, jagged, elem, pow2);
            check_tensorwise(p, elem, pow2);
          }
        }
        for (const ElemDtype elem : kElems) {
          for (const ScaleCalculationMode mode : kModes) {
            check_mx(p, jagged.groups, 0, elem, mode, FloatType::BF16);
            check_mx(p, jagged.groups, 0, elem, mode, FloatType::F32);
          }
        }
      }
    }
  }
}

// Rows of every length that has a kernel of its own, and weights.
void check_long_rows(std::mt19937& rng) {
  for (const int64_t columns :
       {1000, 2048, 2880, 4096, 5120, 6144, 7168, 8192, 8200, 16384, 17000}) {
    for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
      const auto ends = ends_of({1, 0, 66, 3});
      const Problem p = make_problem(type, columns, ends, 72, Fill::WIDE, rng);
      const Metadata metadata(p, 32);
      check_float8(p, place_jagged(p, metadata.m), E4M3, true);
      check_float8(p, place_equal(p, 3, 16), E4M3, true);
      check_tensorwise(p, E5M2, false);
      check_mx(p, RowGroups::equal(3, 24), 3, E4M3, RCEIL, FloatType::BF16);
    }
  }
}

void check_random_shape(std::mt19937& rng) {
  std::vector<int32_t> sizes(1 + rng() % (rng() % 8 == 0 ? 200 : 12));
  for (int32_t& size : sizes) {
    size = static_cast<int32_t>(rng() % 3 == 0 ? kRagged[rng() % kRagged.size()]
                                               : rng() % (1 + 300 / sizes.size()));
  }
  const auto ends = ends_of(sizes);
  const int64_t columns = rng() % 2 ? 1 + rng() % 150 : 8 * (1 + rng() % 20);
  const int64_t rows = ends.back() + (rng() % 2 ? rng() % 100 : 0);
  const FloatType type = rng() % 2 ? FloatType::BF16 : FloatType::F32;
  const Problem p =
      make_problem(type, columns, ends, std::max<int64_t>(rows, 1), kFills[rng() % 3], rng);
  const Metadata metadata(p, rng() % 2 ? 32 : 128);
  const Placed jagged = place_jagged(p, metadata.m);
  check_float8(p, jagged, rng() % 2 ? E4M3 : E5M2, rng() % 2);
  check_mx(p, jagged.groups, 0, kElems[rng() % 5], kModes[rng() % 4],
           rng() % 2 ? FloatType::BF16 : FloatType::F32);
  const int64_t equal = p.rows % 3 == 0 ? 3 : p.rows % 2 == 0 ? 2 : 1;
  check_float8(p, place_equal(p, equal, 16), rng() % 2 ? E4M3 : E5M2, rng() % 2);
  check_mx(p, RowGroups::equal(equal, p.rows / equal), equal, kElems[rng() % 5], kModes[rng() % 4],
           FloatType::BF16);
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  using namespace moe8::cuda;
  const int random_shapes = argc > 1 ? std::atoi(argv[1]) : 200;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  std::mt19937 rng(1);
  check_invalid_offs();
  check_graph(rng);
  if (random_shapes >= 100) {
    check_fixed_shapes(rng);
    check_long_rows(rng);
  }
  for (const int64_t columns : {1, 4, 7, 64, 130}) {
    const auto ends = ends_of(kRagged);
    check_blocked(ends.back() + 3, columns, ends, rng);
  }
  for (int i = 0; i < random_shapes; ++i) check_random_shape(rng);
  std::printf("%s: %lld bytes compared, %d failures, %d random shapes\n",
              failures == 0 ? "OK" : "FAILED", static_cast<long long>(compared), failures,
              random_shapes);
  return failures == 0 ? 0 : 1;
}
