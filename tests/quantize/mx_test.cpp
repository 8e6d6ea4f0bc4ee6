// SPDX-License-Identifier: BSD-3-Clause
// The ladder of the MX quantizers: golden bytes, CPU kernels against the reference bit for bit,
// properties over ragged groups, misuse by message.
#include "moe8/mx.h"

#include <ATen/ATen.h>

#include "cpu/mx.h"
#include "kernels/mx_args.h"
#include "quantize/both_axes.h"
#include "quantize/check_input.h"
#include "reference/mx.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/timing.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::hard_values;
using ::testing::HasSubstr;
using testing::offs_of;
using testing::same_bits;
using testing::same_values;

constexpr ElemDtype kElems[] = {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2,
                                ElemDtype::E2M1};
constexpr ScaleCalculationMode kModes[] = {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL,
                                           ScaleCalculationMode::CEIL, ScaleCalculationMode::EVEN};
constexpr uint8_t kPoison = 0xA5;

/// Outputs of one kernel run over x around `axis`.
struct Outputs {
  at::Tensor data, scale, dequantized, dequantized_back;
};

template <typename Quantize, typename Dequantize>
Outputs run_kernel(const at::Tensor& x, int64_t axis, ElemDtype elem, ScaleCalculationMode mode,
                   const std::vector<int64_t>& groups, at::ScalarType out_dtype, Quantize quantize,
                   Dequantize dequantize_back) {
  const AxisView view = view_around(x.sizes(), axis);
  const at::Tensor ends = groups.empty() ? at::Tensor() : offs_of(groups);
  const std::vector<MxBlock> blocks =
      mx_blocks(view.length, groups.empty() ? nullptr : ends.const_data_ptr<int32_t>(),
                static_cast<int64_t>(groups.size()));
  const int64_t scale_rows = static_cast<int64_t>(blocks.size()) + 2;  // more than there are blocks
  Outputs out{at::full(x.sizes(), kPoison, at::kByte),
              at::full({view.outer, scale_rows, view.inner}, kPoison, at::kByte),
              at::full(x.sizes(), -7.0, out_dtype), at::full(x.sizes(), -7.0, out_dtype)};
  const MxQuantizeArgs args{elem,
                            mode,
                            x.const_data_ptr(),
                            float_type(x.scalar_type()),
                            view.outer,
                            view.length,
                            view.inner,
                            blocks.data(),
                            static_cast<int64_t>(blocks.size()),
                            scale_rows,
                            out.data.mutable_data_ptr<uint8_t>(),
                            out.scale.mutable_data_ptr<uint8_t>(),
                            out.dequantized.mutable_data_ptr(),
                            float_type(out_dtype)};
  // Two calls with an odd border between them: items must not depend on each other.
  const int64_t items = args.work_items();
  quantize(args, 0, items / 3);
  quantize(args, items / 3, items);
  const MxDequantizeArgs back{elem,
                              args.data,
                              args.scale,
                              view.outer,
                              view.length,
                              view.inner,
                              blocks.data(),
                              args.block_count,
                              scale_rows,
                              out.dequantized_back.mutable_data_ptr(),
                              float_type(out_dtype)};
  dequantize_back(back, 0, items / 3);
  dequantize_back(back, items / 3, items);
  return out;
}

struct Shape {
  std::vector<int64_t> sizes;
  int64_t axis;
  std::vector<int64_t> groups;
};

// Rows and columns, short last blocks, more and fewer columns than a tile has, ragged groups with
// tails.
const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {{5, 96}, 1, {}},
      {{3, 2100}, 1, {}},
      {{1, 33}, 1, {}},
      {{2, 1}, 1, {}},
      {{64, 70}, 0, {}},
      {{33, 129}, 0, {}},
      {{1, 3}, 0, {}},
      {{2, 40, 65}, 1, {}},
      {{2, 3, 31}, 2, {}},
      {{491, 67}, 0, {0, 1, 31, 32, 33, 127, 128, 129}},
      {{100, 64}, 0, {0, 40, 0, 0, 50}},
      {{70, 5}, 0, {70}},
      {{9, 5}, 0, {0, 0}},
      {{0, 5}, 0, {}},
  };
  return all;
}

TEST(MxKernels, EqualTheReferenceBitForBit) {
  for (cpu::Isa isa : {cpu::Isa::PORTABLE, cpu::Isa::AVX2, cpu::Isa::AVX512}) {
    if (!cpu::has_isa(isa)) continue;
    uint64_t seed = 0;
    for (const Shape& shape : shapes()) {
      for (ElemDtype elem : kElems) {
        for (ScaleCalculationMode mode : kModes) {
          const at::ScalarType in = seed % 2 ? at::kFloat : at::kBFloat16;
          const at::ScalarType out = seed % 3 ? at::kBFloat16 : at::kFloat;
          const at::Tensor x = hard_values(shape.sizes, in, seed, seed % 4 == 0);
          ++seed;
          const Outputs expected = run_kernel(x, shape.axis, elem, mode, shape.groups, out,
                                              reference::quantize_mx, reference::dequantize_mx);
          const Outputs got = run_kernel(
              x, shape.axis, elem, mode, shape.groups, out,
              [&](const auto& a, int64_t b, int64_t e) { cpu::quantize_mx(a, b, e, isa); },
              [&](const auto& a, int64_t b, int64_t e) { cpu::dequantize_mx(a, b, e, isa); });
          const std::string where = c10::str(cpu::to_string(isa), " ", to_string(elem), " ",
                                             to_string(mode), " ", x.sizes());
          ASSERT_TRUE(same_bits(expected.data, got.data)) << where;
          ASSERT_TRUE(same_bits(expected.scale, got.scale)) << where;
          ASSERT_TRUE(same_values(expected.dequantized, got.dequantized)) << where;
          ASSERT_TRUE(same_values(expected.dequantized_back, got.dequantized_back)) << where;
          ASSERT_TRUE(same_values(expected.dequantized, expected.dequantized_back)) << where;
        }
      }
    }
  }
}

struct BothShape {
  std::vector<int64_t> sizes;  // [outer, length, inner]
  std::vector<int64_t> groups;
};

void expect_both_axes_equal_to_the_reference(const BothShape& shape, ElemDtype elem, uint64_t seed,
                                             cpu::Isa isa) {
  const auto& [sizes, groups] = shape;
  const ScaleCalculationMode mode = kModes[seed % 4];
  const at::ScalarType in = seed % 2 ? at::kFloat : at::kBFloat16;
  const at::ScalarType out = seed % 3 ? at::kBFloat16 : at::kFloat;
  const at::Tensor x = hard_values(sizes, in, seed, seed % 4 == 0);
  const at::Tensor ends = groups.empty() ? at::Tensor() : offs_of(groups);
  const std::vector<MxBlock> blocks =
      mx_blocks(sizes[1], groups.empty() ? nullptr : ends.const_data_ptr<int32_t>(),
                static_cast<int64_t>(groups.size()));
  const int64_t count = static_cast<int64_t>(blocks.size());
  const at::Tensor columns = at::full(sizes, -7.0, out);
  const at::Tensor rows = at::full(sizes, -7.0, out);
  const MxQuantizeBothArgs args{
      {elem, mode, x.const_data_ptr(), float_type(in), sizes[0], sizes[1], sizes[2], blocks.data(),
       count, count, nullptr, nullptr, columns.mutable_data_ptr(), float_type(out)},
      rows.mutable_data_ptr()};
  const int64_t items = args.work_items();
  cpu::quantize_mx_both(args, 0, items / 3, isa);
  cpu::quantize_mx_both(args, items / 3, items, isa);
  const auto expected = [&](int64_t axis, const std::vector<int64_t>& in_groups) {
    return run_kernel(x, axis, elem, mode, in_groups, out, reference::quantize_mx,
                      reference::dequantize_mx)
        .dequantized;
  };
  const int64_t end = groups.empty() ? sizes[1] : blocks.back().begin + blocks.back().size;
  const std::string where = c10::str(cpu::to_string(isa), " ", to_string(elem), " ", x.sizes());
  ASSERT_TRUE(same_values(expected(1, groups), columns)) << where;
  ASSERT_TRUE(same_values(expected(2, {}).slice(1, 0, end), rows.slice(1, 0, end))) << where;
  ASSERT_TRUE(rows.slice(1, end).eq(-7.0).all().item<bool>()) << where;
}

TEST(MxKernels, BothAxesAtOnceEqualTheReferenceBitForBit) {
  // Narrower and wider than a slab; short last blocks along either axis; groups.
  const std::vector<BothShape> both_shapes = {
      {{1, 70, 65}, {}}, {{3, 40, 64}, {}}, {{1, 33, 4200}, {}},
      {{2, 32, 1}, {}},  {{1, 2, 5}, {}},   {{1, 300, 96}, {0, 1, 31, 33, 128}}};
  for (cpu::Isa isa : {cpu::Isa::PORTABLE, cpu::Isa::AVX2, cpu::Isa::AVX512}) {
    if (!cpu::has_isa(isa)) continue;
    uint64_t seed = 0;
    for (const BothShape& shape : both_shapes) {
      for (ElemDtype elem : kElems) {
        expect_both_axes_equal_to_the_reference(shape, elem, seed++, isa);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Not a benchmark: loops that the compiler no longer turns into vector code are ten times slower.
TEST(MxKernels, AreVectorCode) {
  if (cpu::best_isa() == cpu::Isa::PORTABLE)
    GTEST_SKIP() << "this CPU has neither AVX2 nor AVX-512";
  const at::Tensor x = testing::wide_normal({64, 4096}, at::kBFloat16, 1);
  for (int64_t axis : {0, 1}) {
    const auto seconds_of = [&](auto quantize, auto dequantize) {
      return testing::least_of([&](double& seconds) {
        run_kernel(x, axis, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, {}, at::kBFloat16,
                   testing::timed(seconds, quantize), testing::timed(seconds, dequantize));
      });
    };
    const double fast =
        seconds_of([](const auto& a, int64_t b, int64_t e) { cpu::quantize_mx(a, b, e); },
                   [](const auto& a, int64_t b, int64_t e) { cpu::dequantize_mx(a, b, e); });
    const double slow = seconds_of(reference::quantize_mx, reference::dequantize_mx);
    RecordProperty("axis_" + std::to_string(axis), std::to_string(slow / fast));
    EXPECT_LT(fast, slow / 5) << "axis " << axis << ": " << 1e3 * fast << " ms, the reference "
                              << 1e3 * slow << " ms";
  }
}

TEST(QuantizeMx, GoldenBytesOfABlock) {
  const at::Tensor x = at::full({1, 32}, 480.0, at::kBFloat16);
  const MXTensor floor = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR);
  EXPECT_EQ(floor.scale.view(at::kByte).item<int>(), 127);
  EXPECT_TRUE(floor.data.view(at::kByte).eq(0x7E).all().item<bool>());
  const MXTensor rceil = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL);
  EXPECT_EQ(rceil.scale.view(at::kByte).item<int>(), 128);
  EXPECT_TRUE(rceil.data.view(at::kByte).eq(0x77).all().item<bool>());
  EXPECT_EQ(floor.data.scalar_type(), at::kFloat8_e4m3fn);
  EXPECT_EQ(floor.scale.scalar_type(), at::kFloat8_e8m0fnu);
}

TEST(QuantizeMx, ANaNOrInfStaysInItsBlock) {
  for (ElemDtype elem : kElems) {
    for (float poison : {std::nanf(""), INFINITY, -INFINITY}) {
      at::Tensor x = at::ones({2, 96}, at::kBFloat16);
      x[0][40] = poison;
      for (ScaleCalculationMode mode : kModes) {
        const at::Tensor back = dequantize(quantize_mx(x, elem, mode), at::kFloat);
        EXPECT_TRUE(back[0].slice(0, 32, 64).isnan().all().item<bool>());
        EXPECT_EQ(back.isnan().sum().item<int64_t>(), 32);
      }
    }
  }
}

TEST(QuantizeMx, NoGroupsMeansNoBlocks) {
  const at::Tensor x = at::ones({33, 8});
  const at::Tensor offs = at::empty({0}, at::kInt);
  const MXTensor q = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0, offs);
  EXPECT_EQ(q.scale.sizes(), at::IntArrayRef({1, 8}));
  EXPECT_TRUE(q.data.view(at::kByte).eq(0).all().item<bool>());
  EXPECT_TRUE(q.scale.view(at::kByte).eq(0).all().item<bool>());
  EXPECT_TRUE(dequantize(q).eq(0).all().item<bool>());
}

TEST(QuantizeMx, BlocksStartAfreshInEachGroup) {
  const at::Tensor x = hard_values({70, 24}, at::kBFloat16, 7);
  const at::Tensor offs = offs_of({33, 0, 30});
  const MXTensor all = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0, offs);
  const at::Tensor back = dequantize(all);
  const auto alone = [&](int64_t begin, int64_t end) {
    return dequantize(
        quantize_mx(x.slice(0, begin, end), ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0));
  };
  EXPECT_TRUE(same_bits(alone(0, 33), back.slice(0, 0, 33)));
  EXPECT_TRUE(same_bits(alone(33, 63), back.slice(0, 33, 63)));
  EXPECT_TRUE(same_bits(at::zeros({7, 24}, at::kBFloat16), back.slice(0, 63)));
  EXPECT_EQ(all.scale.sizes(), at::IntArrayRef({(70 + 31 * 3) / 32, 24}));
  EXPECT_TRUE(all.scale.view(at::kByte).slice(0, 3).eq(0).all().item<bool>());
}

TEST(QuantizeMx, FakeQuantizeIsQuantizeThenDequantize) {
  const at::Tensor x = hard_values({50, 70}, at::kFloat, 8);
  for (ElemDtype elem : kElems) {
    for (int64_t axis : {0, 1, -1}) {
      for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        const at::Tensor expected =
            dequantize(quantize_mx(x, elem, ScaleCalculationMode::EVEN, axis), dtype);
        EXPECT_TRUE(same_bits(expected, fake_quantize_mx(x, elem, ScaleCalculationMode::EVEN, axis,
                                                         std::nullopt, dtype)));
      }
    }
  }
}

TEST(QuantizeMx, BothAxesAtOnceAreTheTwoAlone) {
  const at::Tensor offs = offs_of({33, 0, 30});
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto expect_alone = [&](const at::Tensor& x, const std::optional<at::Tensor>& groups) {
      const auto mode = ScaleCalculationMode::RCEIL;
      const BothAxes got = fake_quantize_mx_both(x, ElemDtype::E4M3, mode, groups, dtype);
      EXPECT_TRUE(
          same_bits(fake_quantize_mx(x, ElemDtype::E4M3, mode, -1, std::nullopt, dtype), got.last));
      EXPECT_TRUE(same_bits(fake_quantize_mx(x, ElemDtype::E4M3, mode, -2, groups, dtype),
                            got.before_last));
    };
    expect_alone(hard_values({63, 70}, at::kBFloat16, 11), offs);
    expect_alone(hard_values({70, 40}, at::kFloat, 12), offs);  // rows in no group
    expect_alone(hard_values({70, 40}, at::kBFloat16, 13), offs_of({0, 0}));
    expect_alone(hard_values({3, 50, 96}, at::kBFloat16, 14), std::nullopt);
    expect_alone(hard_values({96, 50}, at::kFloat, 15).t(), std::nullopt);
    expect_alone(at::empty({0, 64}, at::kBFloat16), std::nullopt);
  }
}

TEST(QuantizeMx, AcceptsAnyStridesAndRanks) {
  const at::Tensor base = hard_values({6, 4, 70}, at::kBFloat16, 9);
  for (const at::Tensor& x : {base.transpose(0, 2), base.select(1, 2), base.slice(2, 1, 70, 3),
                              base.select(0, 0).select(0, 0), base.unsqueeze(0)}) {
    for (int64_t axis = 0; axis < x.dim(); ++axis) {
      const MXTensor expected =
          quantize_mx(x.contiguous(), ElemDtype::E5M2, ScaleCalculationMode::CEIL, axis);
      const MXTensor got = quantize_mx(x, ElemDtype::E5M2, ScaleCalculationMode::CEIL, axis);
      EXPECT_TRUE(same_bits(expected.data, got.data));
      EXPECT_TRUE(same_bits(expected.scale, got.scale));
    }
  }
}

TEST(QuantizeMx, Float4PacksTheFirstCodeInTheLowNibble) {
  const at::Tensor x = at::tensor({1.0f, 6.0f, -0.5f}).reshape({1, 3});  // scale 1 (127 - 2 + 2)
  const MXTensor q = quantize_mx(x, ElemDtype::E2M1, ScaleCalculationMode::FLOOR);
  EXPECT_TRUE(
      same_bits(at::tensor({0x72, 0x09}, at::kByte).reshape({1, 2}), q.data.view(at::kByte)));
  EXPECT_TRUE(same_bits(x, dequantize(q)));
}

TEST(QuantizeMx, EmptyTensors) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0, 64}, {64, 0}, {0}}) {
    const MXTensor q = quantize_mx(at::empty(sizes, at::kBFloat16));
    EXPECT_EQ(q.data.numel(), 0);
    EXPECT_EQ(dequantize(q).sizes(), at::IntArrayRef(sizes));
  }
}

TEST(QuantizeMx, RepeatsBitwise) {
  const at::Tensor x = hard_values({300, 512}, at::kBFloat16, 10, true);
  const MXTensor a = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0);
  const MXTensor b = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0);
  EXPECT_TRUE(same_bits(a.data, b.data));
  EXPECT_TRUE(same_bits(a.scale, b.scale));
}

TEST(QuantizeMx, MisuseIsToldInWords) {
  const at::Tensor x = at::ones({4, 64}, at::kBFloat16);
  EXPECT_THAT(error_of([&] { quantize_mx(x.to(at::kHalf)); }),
              HasSubstr("[quantize_mx] x: expected bfloat16 or float32, got Half [4, 64] on cpu"));
  EXPECT_THAT(error_of([&] { quantize_mx(at::Tensor()); }), HasSubstr("undefined"));
  EXPECT_THAT(error_of([&] { quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR, 2); }),
              HasSubstr("axis: expected -2 to 1"));
  EXPECT_THAT(error_of([&] { quantize_mx(at::ones({}, at::kFloat)); }),
              HasSubstr("at least one dimension"));
  const auto grouped = [&](const at::Tensor& offs, int64_t axis = 0) {
    return error_of(
        [&] { quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR, axis, offs); });
  };
  EXPECT_THAT(grouped(offs_of({2, 2}), 1), HasSubstr("along axis 0 of a 2-D tensor"));
  EXPECT_THAT(grouped(offs_of({2, 3})), HasSubstr("at most 4, the rows there are, got 5"));
  EXPECT_THAT(grouped(at::tensor({3, 2}, at::kInt)), HasSubstr("non-decreasing end rows"));
  EXPECT_THAT(grouped(at::tensor({-1, 2}, at::kInt)), HasSubstr("non-decreasing end rows"));
  EXPECT_THAT(grouped(offs_of({2, 2}).to(at::kLong)), HasSubstr("1-D int32 end rows"));
  MXTensor broken = quantize_mx(x);
  broken.scale = broken.scale.narrow(0, 0, 2);
  EXPECT_THAT(error_of([&] { dequantize(broken); }),
              HasSubstr("expected scale float8_e8m0fnu [4, 2]"));
  EXPECT_THAT(error_of([&] { dequantize(quantize_mx(x), at::kHalf); }),
              HasSubstr("bfloat16 or float32"));
}

}  // namespace
}  // namespace moe8
