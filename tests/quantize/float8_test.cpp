// SPDX-License-Identifier: BSD-3-Clause
// The ladder of the Float8 quantizers: golden values, CPU kernels against the reference bit for
// bit, properties of reduced sets, misuse by message.
#include "moe8/float8.h"

#include <ATen/ATen.h>

#include "cpu/float8.h"
#include "quantize/both_axes.h"
#include "quantize/check_input.h"
#include "reference/float8.h"
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

struct Outputs {
  at::Tensor data, scale, dequantized, dequantized_back;
};

template <typename Quantize, typename Dequantize>
Outputs run_kernel(const at::Tensor& x, int64_t axis, ElemDtype elem, bool pow2,
                   const std::vector<Float8Set>& sets, at::ScalarType out_dtype, Quantize quantize,
                   Dequantize dequantize_back) {
  const AxisView view = view_around(x.sizes(), axis);
  const int64_t set_count = static_cast<int64_t>(sets.size());
  const Outputs out{at::full(x.sizes(), 0xA5, at::kByte),
                    at::full({view.outer, set_count, view.inner}, -7.0f, at::kFloat),
                    at::full(x.sizes(), -7.0, out_dtype), at::full(x.sizes(), -7.0, out_dtype)};
  const Float8QuantizeArgs args{elem,
                                pow2,
                                x.const_data_ptr(),
                                float_type(x.scalar_type()),
                                view.outer,
                                view.length,
                                view.inner,
                                sets.data(),
                                set_count,
                                out.scale.mutable_data_ptr<float>(),
                                false,
                                out.data.mutable_data_ptr<uint8_t>(),
                                out.dequantized.mutable_data_ptr(),
                                float_type(out_dtype)};
  const int64_t items = args.work_items();
  quantize(args, 0, items / 3);
  quantize(args, items / 3, items);
  const Float8DequantizeArgs back{elem,
                                  args.data,
                                  args.scale,
                                  view.outer,
                                  view.length,
                                  view.inner,
                                  sets.data(),
                                  set_count,
                                  out.dequantized_back.mutable_data_ptr(),
                                  float_type(out_dtype)};
  dequantize_back(back, 0, items / 3);
  dequantize_back(back, items / 3, items);
  return out;
}

struct Shape {
  std::vector<int64_t> sizes;
  int64_t axis;
  std::vector<Float8Set> sets;  // empty: the whole axis
};

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {{5, 96}, 1, {}},
      {{3, 5000}, 1, {}},
      {{64, 70}, 0, {}},
      {{300, 129}, 0, {}},
      {{2, 40, 65}, 1, {}},
      {{2, 3, 31}, 2, {}},
      {{1, 1}, 0, {}},
      {{0, 5}, 0, {}},
      {{491, 67}, 0, {{0, 0}, {0, 1}, {1, 33}, {34, 400}, {434, 0}, {434, 50}}},
      {{2, 700}, 1, {{0, 300}, {300, 0}, {300, 399}}},
  };
  return all;
}

void expect_equal_to_the_reference(const Shape& shape, ElemDtype elem, bool pow2, uint64_t seed,
                                   cpu::Isa isa) {
  const at::ScalarType in = seed % 2 ? at::kFloat : at::kBFloat16;
  const at::ScalarType out = seed % 3 ? at::kBFloat16 : at::kFloat;
  const at::Tensor x = hard_values(shape.sizes, in, seed, seed % 4 == 0);
  const std::vector<Float8Set> sets =
      shape.sets.empty() ? std::vector<Float8Set>{{0, x.size(shape.axis)}} : shape.sets;
  const Outputs expected = run_kernel(x, shape.axis, elem, pow2, sets, out,
                                      reference::quantize_float8, reference::dequantize_float8);
  const Outputs got = run_kernel(
      x, shape.axis, elem, pow2, sets, out,
      [&](const auto& a, int64_t b, int64_t e) { cpu::quantize_float8(a, b, e, isa); },
      [&](const auto& a, int64_t b, int64_t e) { cpu::dequantize_float8(a, b, e, isa); });
  const std::string where = c10::str(cpu::to_string(isa), " ", to_string(elem), " ", x.sizes());
  ASSERT_TRUE(same_bits(expected.data, got.data)) << where;
  ASSERT_TRUE(same_values(expected.scale, got.scale)) << where;
  ASSERT_TRUE(same_values(expected.dequantized, got.dequantized)) << where;
  ASSERT_TRUE(same_values(expected.dequantized_back, got.dequantized_back)) << where;
  ASSERT_TRUE(same_values(expected.dequantized, expected.dequantized_back)) << where;
}

TEST(Float8Kernels, EqualTheReferenceBitForBit) {
  for (cpu::Isa isa : {cpu::Isa::PORTABLE, cpu::Isa::AVX2, cpu::Isa::AVX512}) {
    if (!cpu::has_isa(isa)) continue;
    uint64_t seed = 0;
    for (const Shape& shape : shapes()) {
      for (ElemDtype elem : {ElemDtype::E4M3, ElemDtype::E5M2}) {
        for (bool pow2 : {false, true}) {
          expect_equal_to_the_reference(shape, elem, pow2, seed++, isa);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Not a benchmark: loops that the compiler no longer turns into vector code are ten times slower.
TEST(Float8Kernels, AreVectorCode) {
  if (cpu::best_isa() == cpu::Isa::PORTABLE)
    GTEST_SKIP() << "this CPU has neither AVX2 nor AVX-512";
  const at::Tensor x = testing::wide_normal({64, 4096}, at::kBFloat16, 1);
  for (int64_t axis : {0, 1}) {
    const std::vector<Float8Set> whole = {{0, x.size(axis)}};
    const auto seconds_of = [&](auto quantize, auto dequantize) {
      return testing::least_of([&](double& seconds) {
        run_kernel(x, axis, ElemDtype::E4M3, true, whole, at::kBFloat16,
                   testing::timed(seconds, quantize), testing::timed(seconds, dequantize));
      });
    };
    const double fast =
        seconds_of([](const auto& a, int64_t b, int64_t e) { cpu::quantize_float8(a, b, e); },
                   [](const auto& a, int64_t b, int64_t e) { cpu::dequantize_float8(a, b, e); });
    const double slow = seconds_of(reference::quantize_float8, reference::dequantize_float8);
    RecordProperty("axis_" + std::to_string(axis), std::to_string(slow / fast));
    EXPECT_LT(fast, slow / 5) << "axis " << axis << ": " << 1e3 * fast << " ms, the reference "
                              << 1e3 * slow << " ms";
  }
}

// The same by a chain of ATen operations, in double where the definition says so.
at::Tensor scale_by_aten(const at::Tensor& amax, double max, bool pow2) {
  const at::Tensor scale = (max / amax.to(at::kDouble).clamp_min(1e-12)).to(at::kFloat);
  return pow2 ? scale.to(at::kDouble).log2().floor().exp2().to(at::kFloat) : scale;
}

TEST(QuantizeFloat8, EqualsAChainOfATenOperations) {
  const at::Tensor x = testing::wide_normal({70, 200}, at::kBFloat16, 1);
  for (bool pow2 : {false, true}) {
    for (int64_t axis : {0, 1}) {
      const Float8Tensor q =
          quantize_float8(x, Float8Granularity::axiswise(axis), ElemDtype::E4M3, pow2);
      const at::Tensor scale = scale_by_aten(x.abs().amax({axis}, true), 448, pow2);
      EXPECT_TRUE(same_bits(scale, q.scale));
      EXPECT_TRUE(
          same_bits((x.to(at::kFloat) * scale).clamp(-448, 448).to(at::kFloat8_e4m3fn), q.data));
    }
    const Float8Tensor q =
        quantize_float8(x, Float8Granularity::tensorwise(), ElemDtype::E5M2, pow2);
    const at::Tensor scale = scale_by_aten(x.abs().max(), 57344, pow2);
    EXPECT_TRUE(same_bits(scale, q.scale));
    EXPECT_TRUE(
        same_bits((x.to(at::kFloat) * scale).clamp(-57344, 57344).to(at::kFloat8_e5m2), q.data));
  }
}

TEST(QuantizeFloat8, TensorwiseScaleOfManyChunks) {
  at::Tensor x = at::ones({300, 200}, at::kFloat);
  x[299][199] = 896.0f;
  const Float8Tensor q = quantize_float8(x, Float8Granularity::tensorwise());
  EXPECT_EQ(q.scale.item<float>(), 0.5f);
  EXPECT_EQ(q.scale.dim(), 0);
  EXPECT_TRUE(same_bits(x, dequantize(q)));
}

TEST(QuantizeFloat8, GroupsAreQuantizedAlone) {
  const at::Tensor x = hard_values({70, 33}, at::kBFloat16, 2);
  const at::Tensor offs = offs_of({33, 0, 30});
  const auto axis0 = Float8Granularity::axiswise(0);
  const Float8Tensor q = quantize_float8(x, axis0, ElemDtype::E4M3, true, offs);
  const Float8Tensor first = quantize_float8(x.slice(0, 0, 33), axis0, ElemDtype::E4M3, true);
  const Float8Tensor third = quantize_float8(x.slice(0, 33, 63), axis0, ElemDtype::E4M3, true);
  EXPECT_TRUE(same_bits(first.data, q.data.slice(0, 0, 33)));
  EXPECT_TRUE(same_bits(third.data, q.data.slice(0, 33, 63)));
  EXPECT_TRUE(same_bits(first.scale, q.scale.slice(0, 0, 1)));
  EXPECT_TRUE(q.scale[1].eq(0x1p48f).all().item<bool>())
      << "an empty group has the scale of amax 0";
  EXPECT_TRUE(q.data.slice(0, 63).view(at::kByte).eq(0).all().item<bool>());
  EXPECT_TRUE(dequantize(q).slice(0, 63).eq(0).all().item<bool>());
}

TEST(QuantizeFloat8, ANaNOrInfPoisonsItsSetAndNoOther) {
  for (float poison : {std::nanf(""), INFINITY, -INFINITY}) {
    for (bool pow2 : {false, true}) {
      at::Tensor x = at::ones({4, 100}, at::kBFloat16);
      x[2][50] = poison;
      const auto back = [&](Float8Granularity g,
                            const std::optional<at::Tensor>& offs = std::nullopt) {
        return dequantize(quantize_float8(x, g, ElemDtype::E4M3, pow2, offs)).isnan();
      };
      EXPECT_TRUE(back(Float8Granularity::axiswise(1))[2].all().item<bool>());
      EXPECT_EQ(back(Float8Granularity::axiswise(1)).sum().item<int>(), 100);
      EXPECT_EQ(back(Float8Granularity::axiswise(0)).sum().item<int>(), 4);
      EXPECT_EQ(back(Float8Granularity::axiswise(0), offs_of({2, 2})).sum().item<int>(), 2);
      EXPECT_TRUE(back(Float8Granularity::tensorwise()).all().item<bool>());
    }
  }
}

TEST(QuantizeFloat8, PowerOfTwoScalesAreExactInBFloat16) {
  const at::Tensor x = hard_values({64, 96}, at::kFloat, 3);
  const Float8Tensor q = quantize_float8(x, Float8Granularity::axiswise(1), ElemDtype::E4M3, true);
  EXPECT_TRUE(same_bits(dequantize(q, at::kFloat), dequantize(q, at::kBFloat16).to(at::kFloat)));
}

TEST(QuantizeFloat8, FakeQuantizeIsQuantizeThenDequantize) {
  const at::Tensor x = hard_values({2, 50, 70}, at::kFloat, 4);
  for (Float8Granularity g : {Float8Granularity::tensorwise(), Float8Granularity::axiswise(0),
                              Float8Granularity::axiswise(-2), Float8Granularity::axiswise(2)}) {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      EXPECT_TRUE(
          same_bits(dequantize(quantize_float8(x, g, ElemDtype::E5M2, false), dtype),
                    fake_quantize_float8(x, g, ElemDtype::E5M2, false, std::nullopt, dtype)));
    }
  }
}

TEST(QuantizeFloat8, BothAxesAtOnceAreTheTwoAlone) {
  const auto expect_alone = [&](const at::Tensor& x, const std::optional<at::Tensor>& groups,
                                bool pow2) {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const auto alone = [&](int64_t axis, const std::optional<at::Tensor>& offs) {
        return fake_quantize_float8(x, Float8Granularity::axiswise(axis), ElemDtype::E4M3, pow2,
                                    offs, dtype);
      };
      const BothAxes got = fake_quantize_float8_both(x, ElemDtype::E4M3, pow2, groups, dtype);
      EXPECT_TRUE(same_bits(alone(-1, std::nullopt), got.last));
      EXPECT_TRUE(same_bits(alone(-2, groups), got.before_last));
    }
  };
  expect_alone(hard_values({70, 600}, at::kBFloat16, 6), offs_of({33, 0, 30}), true);
  expect_alone(hard_values({70, 40}, at::kFloat, 7), offs_of({0, 70}), false);
  expect_alone(hard_values({3, 50, 96}, at::kBFloat16, 8), std::nullopt, true);
  expect_alone(hard_values({40, 30}, at::kFloat, 9).t(), std::nullopt, false);
  expect_alone(at::empty({0, 64}, at::kBFloat16), std::nullopt, true);
}

TEST(QuantizeFloat8, AcceptsAnyStridesAndEmptyTensors) {
  const at::Tensor x = hard_values({6, 40}, at::kBFloat16, 5).t();
  const auto axis = Float8Granularity::axiswise(1);
  EXPECT_TRUE(same_bits(quantize_float8(x.contiguous(), axis).data, quantize_float8(x, axis).data));
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0, 64}, {64, 0}}) {
    for (Float8Granularity g :
         {Float8Granularity::tensorwise(), axis, Float8Granularity::axiswise(0)}) {
      const Float8Tensor q = quantize_float8(at::empty(sizes, at::kBFloat16), g);
      EXPECT_EQ(q.data.numel(), 0);
      EXPECT_TRUE(q.scale.isfinite().all().item<bool>());
      EXPECT_EQ(dequantize(q).sizes(), at::IntArrayRef(sizes));
    }
  }
}

TEST(QuantizeFloat8, MisuseIsToldInWords) {
  const at::Tensor x = at::ones({4, 64}, at::kBFloat16);
  const auto axis0 = Float8Granularity::axiswise(0);
  EXPECT_THAT(error_of([&] { quantize_float8(x.to(at::kDouble), axis0); }),
              HasSubstr("[quantize_float8] x: expected bfloat16 or float32, got Double"));
  EXPECT_THAT(error_of([&] { quantize_float8(x, axis0, ElemDtype::E2M1); }),
              HasSubstr("elem: expected float8_e4m3fn or float8_e5m2, got float4_e2m1fn_x2"));
  EXPECT_THAT(error_of([&] { quantize_float8(x, Float8Granularity::axiswise(5)); }),
              HasSubstr("axis: "));
  EXPECT_THAT(error_of([&] {
                quantize_float8(x, Float8Granularity::tensorwise(), ElemDtype::E4M3, true,
                                offs_of({4}));
              }),
              HasSubstr("offs: expected none with tensorwise"));
  EXPECT_THAT(error_of([&] {
                quantize_float8(x, Float8Granularity::axiswise(1), ElemDtype::E4M3, true,
                                offs_of({4}));
              }),
              HasSubstr("axiswise(0)"));
  Float8Tensor broken = quantize_float8(x, axis0);
  broken.scale = broken.scale.t();
  EXPECT_THAT(error_of([&] { dequantize(broken); }), HasSubstr("expected scale [1, 64]"));
}

}  // namespace
}  // namespace moe8
