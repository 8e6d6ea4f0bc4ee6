// SPDX-License-Identifier: BSD-3-Clause
// The dequantizers made of LibTorch's operations, on a CPU, against the kernels: equal values.
#include "quantize/composite.h"

#include <torch/torch.h>

#include "quantize/packing.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

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
  };
  return all;
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
}

}  // namespace
}  // namespace moe8
