// SPDX-License-Identifier: BSD-3-Clause
// Scales of MX blocks and of Float8 sets: the rows of docs/numerics.md, and a second derivation in
// double precision.
#include <cmath>
#include <random>

#include "formats/e8m0.h"
#include "formats/float8_scale.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

constexpr ScaleCalculationMode kModes[] = {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL,
                                           ScaleCalculationMode::CEIL, ScaleCalculationMode::EVEN};
constexpr ElemDtype kElems[] = {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2,
                                ElemDtype::E2M1};

uint8_t scale_of(float amax, ScaleCalculationMode mode, ElemDtype elem = ElemDtype::E4M3) {
  return mx_scale(std::bit_cast<uint32_t>(amax), elem, mode);
}

TEST(MxScale, RowsOfTheSpecification) {
  using enum ScaleCalculationMode;
  struct Row {
    float amax;
    uint8_t floor_scale, floor_code, rceil_scale, rceil_code;
  };
  const float bf16_max = 0x1.FEp127f;
  const Row rows[] = {
      {0.0f, 0, 0x00, 0, 0x00},         {0x1p-126f, 0, 0x40, 0, 0x40},
      {448.0f, 127, 0x7E, 127, 0x7E},   {480.0f, 127, 0x7E, 128, 0x77},
      {bf16_max, 246, 0x7E, 247, 0x78}, {0x1p-133f, 0, 0x08, 0, 0x08},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(scale_of(row.amax, FLOOR), row.floor_scale) << row.amax;
    EXPECT_EQ(scale_of(row.amax, RCEIL), row.rceil_scale) << row.amax;
    EXPECT_EQ(encode(row.amax * mx_scale_inverse(row.floor_scale), ElemDtype::E4M3),
              row.floor_code);
    EXPECT_EQ(encode(row.amax * mx_scale_inverse(row.rceil_scale), ElemDtype::E4M3),
              row.rceil_code);
  }
}

TEST(MxScale, NonFiniteAmaxIsNaNInEveryModeAndFormat) {
  for (ScaleCalculationMode mode : kModes) {
    for (ElemDtype elem : kElems) {
      EXPECT_EQ(scale_of(INFINITY, mode, elem), kE8m0NaN);
      EXPECT_EQ(scale_of(std::nanf(""), mode, elem), kE8m0NaN);
      // EVEN rounds the largest number up to Inf.
      const uint8_t largest = scale_of(std::numeric_limits<float>::max(), mode, elem);
      EXPECT_EQ(largest == kE8m0NaN, mode == ScaleCalculationMode::EVEN);
    }
  }
}

TEST(MxScale, RoundUpOfTheQuotient) {
  // The quotient's bits -> the byte, as conversions to e8m0 with rounding up define it. An amax
  // whose product with 1/V is the wanted quotient is found by search.
  const std::pair<uint32_t, uint8_t> rows[] = {
      {0x00400000, 0}, {0x00400001, 1}, {0x00800000, 1}, {0x3F800000, 127}, {0x3F800001, 128}};
  for (const auto& [quotient, byte] : rows) {
    const float v = layout_of(ElemDtype::E4M3).max;
    float amax = std::bit_cast<float>(quotient) * v;
    for (int step = -4; step <= 4; ++step) {
      const float candidate = std::bit_cast<float>(std::bit_cast<uint32_t>(amax) + step);
      if (std::bit_cast<uint32_t>(candidate * (1.0f / v)) == quotient) {
        EXPECT_EQ(scale_of(candidate, ScaleCalculationMode::RCEIL), byte) << std::hex << quotient;
      }
    }
  }
}

TEST(MxScale, FollowsItsDefinitionInDouble) {
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    const float amax = std::bit_cast<float>(static_cast<uint32_t>(random()) & 0x7FFFFFFFu);
    if (!std::isfinite(amax) || amax < 0x1p-100f) continue;
    for (ElemDtype elem : kElems) {
      const ElemLayout f = layout_of(elem);
      const int exponent = std::ilogb(amax);
      EXPECT_EQ(scale_of(amax, ScaleCalculationMode::FLOOR, elem), exponent - f.max_exponent + 127);
      const int up = amax != std::ldexp(1.0f, exponent);
      EXPECT_EQ(scale_of(amax, ScaleCalculationMode::CEIL, elem),
                exponent + up - f.max_exponent + 127);
      const double threshold = 2 - std::exp2(-f.mantissa_bits - 1);  // rounds up to the next binade
      const int even = amax / std::ldexp(1.0, exponent) >= threshold;
      EXPECT_EQ(scale_of(amax, ScaleCalculationMode::EVEN, elem),
                exponent + even == 128 ? int{kE8m0NaN} : exponent + even - f.max_exponent + 127);
      const double scale = mx_scale_value(scale_of(amax, ScaleCalculationMode::RCEIL, elem));
      const double needed = static_cast<double>(amax) / f.max;
      EXPECT_GE(scale, needed * (1 - 1e-6));
      EXPECT_LT(scale, 2 * needed * (1 + 1e-6));
    }
  }
}

TEST(MxScale, ValueAndInverseAreExactPowersOfTwo) {
  for (int s = 0; s < 255; ++s) {
    const uint8_t byte = static_cast<uint8_t>(s);
    EXPECT_EQ(mx_scale_value(byte), std::ldexp(1.0, s - 127)) << s;
    EXPECT_EQ(mx_scale_inverse(byte), std::ldexp(1.0, 127 - s)) << s;
  }
  EXPECT_TRUE(std::isnan(mx_scale_value(255)));
  EXPECT_TRUE(std::isnan(mx_scale_inverse(255)));
}

TEST(Float8Scale, RowsOfTheSpecification) {
  const auto scale = [](float amax, bool pow2, ElemDtype elem = ElemDtype::E4M3) {
    return float8_scale(std::bit_cast<uint32_t>(amax), elem, pow2);
  };
  EXPECT_EQ(scale(0.0f, true), 0x1p48f);
  EXPECT_EQ(scale(0.0f, false), static_cast<float>(448 / 1e-12));
  EXPECT_EQ(scale(448.0f, false), 1.0f);
  EXPECT_EQ(scale(1.0f, true), 256.0f);
  EXPECT_EQ(scale(1.0f, true, ElemDtype::E5M2), 32768.0f);
  EXPECT_EQ(scale(INFINITY, true), 0.0f);
  EXPECT_EQ(scale(INFINITY, false), 0.0f);
  EXPECT_TRUE(std::isnan(scale(std::nanf(""), true)));
  EXPECT_TRUE(std::isnan(scale(std::nanf(""), false)));
}

TEST(Float8Scale, PowerOfTwoFollowsTheMantissaOfABFloat16Amax) {
  for (uint32_t bits = 0x0080; bits < 0x7F80; ++bits) {  // normal bf16 numbers
    const float amax = std::bit_cast<float>(bits << 16);
    if (amax < 1e-11f) continue;  // near the floor of the amax
    const int exponent = std::ilogb(amax);
    const int expected = (bits & 0x7F) <= 0x60 ? 8 - exponent : 7 - exponent;
    EXPECT_EQ(float8_scale(bits << 16, ElemDtype::E4M3, true), std::ldexp(1.0, expected)) << amax;
  }
}

}  // namespace
}  // namespace moe8
