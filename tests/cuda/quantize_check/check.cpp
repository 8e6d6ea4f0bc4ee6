// SPDX-License-Identifier: BSD-3-Clause
// Inputs, and what results are compared by.
#include "cuda/quantize_check/check.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>

namespace moe8::cuda {
namespace {

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

}  // namespace

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
  std::inclusive_scan(sizes.begin(), sizes.end(), std::back_inserter(ends));
  return ends;
}

Bytes with_one_nan(Bytes values, FloatType type) {
  const auto name_nan = [&]<typename T>(T exponent, T nan) {
    for (size_t i = 0; i < values.size(); i += sizeof(T)) {
      T bits;
      std::memcpy(&bits, &values[i], sizeof(T));
      const T magnitude = static_cast<T>(bits & static_cast<T>(~(T{1} << (8 * sizeof(T) - 1))));
      if (magnitude > exponent) std::memcpy(&values[i], &nan, sizeof(T));
    }
  };
  if (type == FloatType::BF16) {
    name_nan(uint16_t{0x7F80}, uint16_t{0x7FC0});
  } else {
    name_nan(0x7F800000u, 0x7FC00000u);
  }
  return values;
}

}  // namespace moe8::cuda
