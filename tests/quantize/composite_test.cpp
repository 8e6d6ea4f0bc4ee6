// SPDX-License-Identifier: BSD-3-Clause
// The quantizers made of LibTorch's operations, on a CPU, against the kernels and through them the
// reference: equal bits of codes and scales, equal values. tests/CMakeLists.txt runs the tests of
// whole quantizers and products once more with MOE8_KERNELS=off.
#include "quantize/composite.h"

#include <torch/torch.h>

#include "device/implementation.h"
#include "groups/padded_tokens.h"
#include "quantize/packing.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::same_bits;
using testing::same_values;

constexpr ElemDtype kElems[] = {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2,
                                ElemDtype::E2M1};
constexpr at::ScalarType kDtypes[] = {at::kBFloat16, at::kFloat};

struct Layout {
  std::vector<int64_t> sizes;
  int64_t axis;
  std::optional<at::Tensor> offs;
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {{5, 70}, 1, std::nullopt},
      {{70, 6}, 0, std::nullopt},
      {{3, 40, 7}, 1, std::nullopt},
      {{2, 3, 33}, 2, std::nullopt},
      {{131, 10}, 0, testing::offs_of({0, 1, 33, 0, 64, 31})},
      {{50, 10}, 0, testing::offs_of({20, 0, 17})},  // 13 rows of no group
      {{9, 4}, 0, testing::offs_of({0, 0})},
      {{64, 3}, 0, at::empty({0}, at::kInt)},  // no groups
      {{0, 4}, 0, testing::offs_of({0, 0})},
      {{0, 8}, 1, std::nullopt},
      {{4, 0}, 1, std::nullopt},
      {{3, 32, 4}, 0, std::nullopt},
  };
  return all;
}

constexpr ScaleCalculationMode kModes[] = {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL,
                                           ScaleCalculationMode::CEIL, ScaleCalculationMode::EVEN};

std::string name_of(const Layout& layout) {
  return c10::str(at::IntArrayRef(layout.sizes), " axis ", layout.axis,
                  layout.offs ? c10::str(" in ", layout.offs->numel(), " groups") : "");
}

// What the other side of every comparison below is; with MOE8_KERNELS=off it would be the same.
TEST(Composite, IsComparedWithKernels) {
  EXPECT_EQ(implementation_on(at::kCPU), Implementation::CPU_KERNELS);
}

TEST(Composite, QuantizesToMxAsTheKernelsDo) {
  for (const Layout& layout : layouts()) {
    for (ElemDtype elem : kElems) {
      for (ScaleCalculationMode mode : kModes) {
        for (at::ScalarType in : kDtypes) {
          SCOPED_TRACE(
              c10::str(to_string(elem), " ", to_string(mode), " ", in, " ", name_of(layout)));
          const at::Tensor x = testing::hard_values(layout.sizes, in, 11, /*with_nonfinite=*/true);
          const MXTensor expected = quantize_mx(x, elem, mode, layout.axis, layout.offs);
          const MxCodes got = composite_quantize_mx(x, elem, mode, layout.axis, layout.offs);
          EXPECT_TRUE(same_bits(unpack_codes(expected.data, elem, expected.shape), got.codes));
          EXPECT_TRUE(same_bits(expected.scale.view(at::kByte), got.scale));
        }
      }
    }
  }
}

// Every bf16 number is the largest of a block of its own, among numbers down to nothing.
TEST(Composite, FindsTheMxScaleOfEveryMagnitude) {
  const at::Tensor bits = torch::arange(1 << 16, at::kInt).to(at::kShort);
  const at::Tensor largest = bits.view(at::kBFloat16).to(at::kFloat).unsqueeze(1);
  const at::Tensor x = largest * torch::arange(32, at::kFloat).mul(-1).exp2();
  for (ElemDtype elem : kElems) {
    for (ScaleCalculationMode mode : kModes) {
      const MXTensor expected = quantize_mx(x, elem, mode);
      const MxCodes got = composite_quantize_mx(x, elem, mode, 1, std::nullopt);
      EXPECT_TRUE(same_bits(expected.scale.view(at::kByte), got.scale)) << to_string(mode);
      EXPECT_TRUE(same_bits(unpack_codes(expected.data, elem, expected.shape), got.codes))
          << to_string(elem) << " " << to_string(mode);
    }
  }
}

void expect_float8_as_the_kernels(const at::Tensor& x, const Float8Granularity& granularity,
                                  const std::optional<at::Tensor>& offs) {
  for (ElemDtype elem : {ElemDtype::E4M3, ElemDtype::E5M2}) {
    for (bool pow2 : {false, true}) {
      SCOPED_TRACE(c10::str(to_string(elem), pow2 ? " pow2" : ""));
      const Float8Tensor expected = quantize_float8(x, granularity, elem, pow2, offs);
      const Float8Codes got = composite_quantize_float8(x, granularity, elem, pow2, offs);
      EXPECT_TRUE(same_bits(expected.data.view(at::kByte), got.codes));
      EXPECT_TRUE(same_bits(expected.scale, got.scale));
    }
  }
}

TEST(Composite, QuantizesToFloat8AsTheKernelsDo) {
  for (const Layout& layout : layouts()) {
    for (at::ScalarType in : kDtypes) {
      SCOPED_TRACE(c10::str(in, " ", name_of(layout)));
      for (bool with_nonfinite : {false, true}) {
        const at::Tensor x = testing::hard_values(layout.sizes, in, 12, with_nonfinite);
        expect_float8_as_the_kernels(x, Float8Granularity::axiswise(layout.axis), layout.offs);
        if (!layout.offs) expect_float8_as_the_kernels(x, Float8Granularity::tensorwise(), {});
      }
    }
  }
}

TEST(Composite, FindsTheFloat8ScaleOfEveryMagnitude) {
  const at::Tensor bits = torch::arange(1 << 16, at::kInt).to(at::kShort);
  const at::Tensor x = bits.view(at::kBFloat16).unsqueeze(1);
  expect_float8_as_the_kernels(x, Float8Granularity::axiswise(1), std::nullopt);
  // Around the floor of 1e-12 and where a power of two is just met, in float32.
  const at::Tensor near = torch::tensor({1e-12f, 1.0f, 448.0f, 57344.0f, 1.75f}).view(at::kInt);
  const at::Tensor around = (near.unsqueeze(1) + torch::arange(-40, 40, at::kInt)).view({-1, 1});
  expect_float8_as_the_kernels(around.view(at::kFloat), Float8Granularity::axiswise(1), {});
}

TEST(Composite, TakesAnyStrides) {
  const at::Tensor x = testing::wide_normal({40, 70}, at::kBFloat16, 13).t();
  const MxCodes got = composite_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1, {});
  const MXTensor expected = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1);
  EXPECT_TRUE(same_bits(expected.data.view(at::kByte), got.codes));
  expect_float8_as_the_kernels(x, Float8Granularity::axiswise(0), std::nullopt);
}

// A GPU's offs are not checked unless asked: whatever they hold, nothing outside is touched.
TEST(Composite, ClampsWrongEndRows) {
  const at::Tensor x = testing::wide_normal({50, 6}, at::kFloat, 14);
  const auto clamped = [](at::ArrayRef<int> ends) { return torch::tensor(ends, at::kInt); };
  for (const auto& [wrong, right] : std::vector<std::pair<std::vector<int>, std::vector<int>>>{
           {{5, 3, 9}, {5, 5, 9}}, {{-1, 3, 9}, {0, 3, 9}}, {{5, 7, 101}, {5, 7, 50}}}) {
    const MxCodes a =
        composite_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0, clamped(wrong));
    const MxCodes b =
        composite_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0, clamped(right));
    EXPECT_TRUE(same_bits(a.codes, b.codes));
    EXPECT_TRUE(same_bits(a.scale, b.scale));
  }
}

TEST(Composite, DequantizesMxAsTheKernelsDo) {
  for (const Layout& layout : layouts()) {
    for (ElemDtype elem : kElems) {
      for (at::ScalarType in : kDtypes) {
        const at::Tensor x = testing::hard_values(layout.sizes, in, 5, /*with_nonfinite=*/true);
        const MXTensor mx =
            quantize_mx(x, elem, ScaleCalculationMode::RCEIL, layout.axis, layout.offs);
        const at::Tensor codes = unpack_codes(mx.data, elem, mx.shape);
        for (at::ScalarType out : kDtypes) {
          EXPECT_TRUE(same_values(dequantize(mx, out), composite_dequantize_mx(mx, codes, out)))
              << to_string(elem) << " " << at::IntArrayRef(layout.sizes);
        }
      }
    }
  }
}

TEST(Composite, DequantizesEveryMxScale) {
  // Every scale byte with every code, the ends of the range included.
  const at::Tensor codes = torch::arange(256, at::kInt).to(at::kByte).repeat({256, 1});
  const at::Tensor scale = torch::arange(256, at::kInt).to(at::kByte).unsqueeze(1).repeat({1, 8});
  for (ElemDtype elem : {ElemDtype::E4M3, ElemDtype::E5M2}) {
    const MXTensor mx{.data = pack_codes(codes, elem),
                      .scale = scale.view(at::kFloat8_e8m0fnu),
                      .elem = elem,
                      .axis = 1,
                      .orig_dtype = at::kFloat,
                      .shape = {256, 256},
                      .offs = std::nullopt};
    for (at::ScalarType out : kDtypes) {
      EXPECT_TRUE(same_values(dequantize(mx, out), composite_dequantize_mx(mx, codes, out)))
          << to_string(elem);
    }
  }
}

TEST(Composite, DequantizesFloat8AsTheKernelsDo) {
  for (const Layout& layout : layouts()) {
    for (ElemDtype elem : {ElemDtype::E4M3, ElemDtype::E5M2}) {
      for (bool pow2 : {false, true}) {
        for (at::ScalarType out : kDtypes) {
          const at::Tensor x =
              testing::hard_values(layout.sizes, at::kFloat, 6, /*with_nonfinite=*/true);
          const Float8Tensor f8 =
              quantize_float8(x, Float8Granularity::axiswise(layout.axis), elem, pow2, layout.offs);
          EXPECT_TRUE(same_values(dequantize(f8, out),
                                  composite_dequantize_float8(f8, f8.data.view(at::kByte), out)))
              << to_string(elem) << " " << at::IntArrayRef(layout.sizes);
        }
      }
    }
  }
}

TEST(Composite, DequantizesOneScaleOfATensor) {
  const at::Tensor x = testing::wide_normal({33, 17}, at::kBFloat16, 7);
  const Float8Tensor f8 = quantize_float8(x, Float8Granularity::tensorwise());
  EXPECT_TRUE(same_values(dequantize(f8),
                          composite_dequantize_float8(f8, f8.data.view(at::kByte), at::kBFloat16)));
}

TEST(Composite, RowsFindTheirGroup) {
  const at::Tensor group = group_of_rows(testing::offs_of({2, 0, 3}), 7);
  EXPECT_TRUE(at::equal(group, torch::tensor({0, 0, 2, 2, 2, 3, 3}, at::kLong)));
  EXPECT_TRUE(at::equal(group_of_rows(at::empty({0}, at::kInt), 2), torch::zeros({2}, at::kLong)));
}

}  // namespace
}  // namespace moe8
