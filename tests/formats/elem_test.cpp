// SPDX-License-Identifier: BSD-3-Clause
// Element formats against their definition: every code decoded by hand, every bf16 number and many
// float32 numbers encoded by searching the nearest code.
#include "formats/elem.h"

#include <ATen/ATen.h>

#include <cmath>
#include <random>

#include "formats/float_type.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

constexpr ElemDtype kAll[] = {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2,
                              ElemDtype::E2M1};

double value_by_definition(uint32_t code, const ElemLayout& f) {
  const int exponent = static_cast<int>(code >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
  const double fraction = (code & ((1u << f.mantissa_bits) - 1)) / std::exp2(f.mantissa_bits);
  const double sign = code >> (f.bits() - 1) ? -1 : 1;
  return exponent == 0 ? sign * fraction * std::exp2(1 - f.bias)
                       : sign * (1 + fraction) * std::exp2(exponent - f.bias);
}

// The finite code nearest to |x|, the even one of two that are equally near.
uint32_t nearest_code(double magnitude, ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  uint32_t best = 0;
  for (uint32_t code = 0; code < (1u << (f.bits() - 1)); ++code) {
    const double value = value_by_definition(code, f);
    if (value > f.max) break;  // codes of Inf and NaN lie above
    const double distance = std::abs(value - magnitude);
    const double least = std::abs(value_by_definition(best, f) - magnitude);
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best;
}

void expect_nearest(float x, ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  const uint32_t sign = std::signbit(x) ? 1u << (f.bits() - 1) : 0;
  const double clamped = std::min<double>(std::abs(x), f.max);
  ASSERT_EQ(encode(x, elem), sign | nearest_code(clamped, elem))
      << "x = " << x << ", format " << static_cast<int>(elem);
  const ElemRounding rounding(elem);
  ASSERT_EQ(encode(x, rounding), encode(x, elem))
      << "x = " << x << ", format " << static_cast<int>(elem);
  ASSERT_EQ(std::bit_cast<uint32_t>(round_to_elem(x, rounding)),
            std::bit_cast<uint32_t>(decode(encode(x, elem), elem)))
      << "x = " << x << ", format " << static_cast<int>(elem);
}

TEST(Elem, DecodesEveryCodeAsDefined) {
  for (ElemDtype elem : kAll) {
    const ElemLayout f = layout_of(elem);
    for (uint32_t code = 0; code < (1u << f.bits()); ++code) {
      const double expected = value_by_definition(code, f);
      const float got = decode(code, elem);
      if (std::abs(expected) <= f.max) {
        ASSERT_EQ(got, expected) << "code " << code << " of format " << static_cast<int>(elem);
        ASSERT_EQ(std::signbit(got), std::signbit(expected));
      } else if (elem == ElemDtype::E5M2 && (code & 0x7F) == 0x7C) {
        ASSERT_TRUE(std::isinf(got));
      } else {
        ASSERT_TRUE(std::isnan(got)) << "code " << code << " of format " << static_cast<int>(elem);
      }
    }
  }
}

TEST(Elem, EncodesEveryBFloat16ToTheNearestCode) {
  for (ElemDtype elem : kAll) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float x = to_float(BFloat16{static_cast<uint16_t>(bits)});
      if (!std::isnan(x)) expect_nearest(x, elem);
    }
  }
}

TEST(Elem, EncodesFloat32NearTiesToTheNearestCode) {
  for (ElemDtype elem : kAll) {
    const ElemLayout f = layout_of(elem);
    for (uint32_t code = 0; code + 1 < (1u << (f.bits() - 1)); ++code) {
      const double low = value_by_definition(code, f);
      const double high = value_by_definition(code + 1, f);
      if (high > f.max) break;
      const float middle = static_cast<float>((low + high) / 2);
      for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
        expect_nearest(x, elem);
        expect_nearest(-x, elem);
      }
    }
  }
}

TEST(Elem, EncodesRandomFloat32BitsToTheNearestCode) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(x)) continue;
    for (ElemDtype elem : kAll) expect_nearest(x, elem);
  }
}

TEST(Elem, NaNStaysNaNWhereTheFormatHasOne) {
  for (float nan : {std::nanf(""), -std::nanf("")}) {
    EXPECT_EQ(encode(nan, ElemDtype::E4M3), 0x7Fu);
    EXPECT_TRUE(std::isnan(decode(encode(nan, ElemDtype::E5M2), ElemDtype::E5M2)));
    // Formats without NaN: the code that torchao's casts leave.
    EXPECT_EQ(encode(nan, ElemDtype::E2M1), 0x03u);
    EXPECT_EQ(encode(nan, ElemDtype::E2M3), 0x0Cu);
    EXPECT_EQ(encode(nan, ElemDtype::E3M2), 0x0Eu);
    for (ElemDtype elem : kAll) EXPECT_EQ(encode(nan, ElemRounding(elem)), encode(nan, elem));
  }
}

TEST(Elem, InfinitySaturates) {
  EXPECT_EQ(encode(INFINITY, ElemDtype::E4M3), 0x7Eu);
  EXPECT_EQ(encode(-INFINITY, ElemDtype::E5M2), 0xFBu);
  EXPECT_EQ(encode(INFINITY, ElemDtype::E2M3), 0x1Fu);
}

TEST(Elem, EqualsLibTorchsCastsOfClampedNumbers) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = to_float(BFloat16{static_cast<uint16_t>(bits)});
    if (std::isfinite(x)) values.push_back(x);
  }
  const at::Tensor x = at::tensor(values);
  for (auto [elem, dtype] : {std::pair{ElemDtype::E4M3, at::kFloat8_e4m3fn},
                             std::pair{ElemDtype::E5M2, at::kFloat8_e5m2}}) {
    const double max = layout_of(elem).max;
    const at::Tensor expected = x.clamp(-max, max).to(dtype);
    at::Tensor got = at::empty(x.sizes(), at::kByte);
    for (size_t i = 0; i < values.size(); ++i) {
      got.mutable_data_ptr<uint8_t>()[i] = static_cast<uint8_t>(encode(values[i], elem));
    }
    EXPECT_TRUE(testing::same_bits(expected.view(at::kByte), got));
  }
}

TEST(FloatType, RoundsToBFloat16AsLibTorch) {
  std::mt19937 random(2);
  std::vector<float> values = {0.0f, -0.0f, INFINITY, -INFINITY, 1e-45f, 3.4e38f};
  for (int i = 0; i < 100000; ++i)
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  const at::Tensor x = at::tensor(values);
  at::Tensor got = at::empty(x.sizes(), at::kBFloat16);
  for (size_t i = 0; i < values.size(); ++i) {
    got.mutable_data_ptr<at::BFloat16>()[i] =
        at::BFloat16(from_float<BFloat16>(values[i]).bits, at::BFloat16::from_bits());
  }
  EXPECT_TRUE(testing::same_values(x.to(at::kBFloat16), got));
}

}  // namespace
}  // namespace moe8
