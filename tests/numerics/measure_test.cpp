// SPDX-License-Identifier: BSD-3-Clause
// Sums over a sample against the same sums over the whole operand as a kernel quantizes it.
#include "numerics/measure.h"

#include <ATen/ATen.h>

#include <cmath>

#include "autograd/training_formats.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::offs_of;
using testing::sqnr_db;
using testing::wide_normal;

constexpr Sampling kEverything{1 << 20, 1 << 20, 1 << 10, 0};
constexpr Sampling kLittle{256, 64, 2, 0.4};
GemmSums measure(const GemmProblem& problem, const at::Tensor& result, const Sampling& sampling) {
  return sums_of(Sampler(sampling).take(problem, result));
}

constexpr Gemm kGemms[] = {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT};
constexpr int64_t kM = 203, kN = 40, kK = 72;  // 3 rows are in no group

GemmFormats formats_of(const Config& config, Gemm gemm) {
  const TrainingFormats formats = training_formats(config);
  return gemm == Gemm::OUT          ? formats.out
         : gemm == Gemm::GRAD_INPUT ? formats.grad_input
                                    : formats.grad_weight;
}

GemmProblem problem_of(Gemm gemm, const Config& config, at::ScalarType dtype) {
  const bool grouped = is_grouped(config);
  const std::vector<int64_t> sizes{64, 0, 33, 3, 100};
  const int64_t experts = grouped ? 5 : 1;
  return {.gemm = gemm,
          .left = wide_normal({kM, gemm == Gemm::OUT ? kK : kN}, dtype, 1),
          .right = gemm == Gemm::GRAD_WEIGHT ? wide_normal({kM, kK}, dtype, 2)
                                             : wide_normal({experts, kN, kK}, dtype, 3),
          .groups = grouped ? TokenGroups(offs_of(sizes)) : TokenGroups(),
          .formats = formats_of(config, gemm),
          .out_dtype = at::kFloat};
}

// The operand as a kernel sees it, without rows that are in no group.
struct Whole {
  at::Tensor x, q;
};

Whole left_of(const GemmProblem& p) {
  const int64_t rows = p.groups.offs() ? kM - 3 : kM;
  const bool by_rows = p.gemm == Gemm::GRAD_WEIGHT;
  const at::Tensor q = operand_values(p.left.source(), p.formats.left, by_rows ? 0 : 1,
                                      by_rows ? p.groups.offs() : std::nullopt, at::kFloat);
  return {p.left.source().to(at::kFloat).narrow(0, 0, rows), q.narrow(0, 0, rows)};
}

Whole weight_of(const GemmProblem& p) {
  const at::Tensor q = operand_values(p.right.source(), p.formats.right,
                                      p.gemm == Gemm::OUT ? 2 : 1, std::nullopt, at::kFloat);
  return {p.right.source().to(at::kFloat), q};
}

void expect_sums_of(const Whole& whole, const OperandSums& sums, const std::string& what) {
  SCOPED_TRACE(what);
  EXPECT_EQ(sums.error.values, whole.x.numel());
  EXPECT_EQ(sums.amax, whole.x.abs().max().item<double>());
  EXPECT_EQ(sums.nonzero, whole.x.ne(0).sum().item<int64_t>());
  EXPECT_EQ(sums.underflow, (whole.x.ne(0) & whole.q.eq(0)).sum().item<int64_t>());
  EXPECT_EQ(sums.error.nonfinite, 0);
  if (testing::same_bits(whole.x, whole.q)) {
    EXPECT_TRUE(std::isinf(sums.error.sqnr_db()));
  } else {
    EXPECT_NEAR(sums.error.sqnr_db(), sqnr_db(whole.x, whole.q), 1e-6);
  }
}

TEST(Measure, SumsOverEverythingAreThoseOfTheOperandsOfEveryRecipe) {
  for (const RecipeInfo& info : all_recipes()) {
    for (const Gemm gemm : kGemms) {
      for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        const GemmProblem p = problem_of(gemm, info.config, dtype);
        const GemmSums sums = measure(p, low_precision_gemm(p), kEverything);
        const std::string what = info.name + " " + to_string(gemm);
        expect_sums_of(left_of(p), sums.left, what + " left");
        if (gemm != Gemm::GRAD_WEIGHT) expect_sums_of(weight_of(p), sums.right, what + " right");
        EXPECT_EQ(sums.calls, 1);
      }
    }
  }
}

// Wherever a sample is taken, its values are quantized as the whole operand is.
TEST(Measure, ASampleIsQuantizedAsTheWhole) {
  for (const RecipeInfo& info : all_recipes()) {
    for (const Gemm gemm : kGemms) {
      const GemmProblem p = problem_of(gemm, info.config, at::kFloat);
      const GemmSums sums = measure(p, low_precision_gemm(p), kLittle);
      const Whole whole = left_of(p);
      const int64_t axis = gemm == Gemm::GRAD_WEIGHT ? 1 : 0;
      const int64_t count = std::max<int64_t>(4, 256 / whole.x.size(1 - axis));
      const at::Tensor indices = at::tensor(indices_of(spaced(whole.x.size(axis), count), 0.4));
      ASSERT_LT(indices.numel(), whole.x.size(axis));
      const at::Tensor x = whole.x.index_select(axis, indices);
      const at::Tensor q = whole.q.index_select(axis, indices);
      EXPECT_EQ(sums.left.error.values, x.numel());
      EXPECT_NEAR(sums.left.error.signal, x.to(at::kDouble).square().sum().item<double>(),
                  1e-9 * sums.left.error.signal);
      EXPECT_NEAR(sums.left.error.noise, (x - q).to(at::kDouble).square().sum().item<double>(),
                  1e-6 * sums.left.error.noise)
          << info.name << " " << to_string(gemm);
      EXPECT_EQ(sums.left.underflow, (x.ne(0) & q.eq(0)).sum().item<int64_t>());
    }
  }
}

at::Tensor exact_result(const GemmProblem& p) {
  GemmProblem exact = p;
  exact.formats = {HighPrecision{}, HighPrecision{}};
  return low_precision_gemm(exact);
}

TEST(Measure, ProductsAreComparedWithHighPrecision) {
  for (const char* name : {"mxfp8_rceil", "fp8_rowwise", "rowwise", "mxfp4_emulated"}) {
    for (const Gemm gemm : kGemms) {
      const GemmProblem p = problem_of(gemm, recipe(name), at::kFloat);
      const at::Tensor result = low_precision_gemm(p), exact = exact_result(p);
      const GemmSums sums = measure(p, result, kEverything);
      EXPECT_GT(measure(p, exact, kEverything).result.sqnr_db(), 100) << name;  // float32 sums
      EXPECT_NEAR(sums.result.sqnr_db(), sqnr_db(exact, result), 1)
          << name << " " << to_string(gemm);
      // All rows and 32 columns; of GRAD_WEIGHT everything, but for experts without rows.
      const int64_t experts = p.groups.offs() ? 4 : 1, rows = p.groups.offs() ? 200 : kM;
      EXPECT_EQ(sums.result.values, gemm == Gemm::GRAD_WEIGHT ? experts * kN * kK : rows * 32);
      const GemmSums little = measure(p, result, kLittle);
      EXPECT_LT(little.result.values, sums.result.values);
      EXPECT_NEAR(little.result.sqnr_db(), sums.result.sqnr_db(), 6);
    }
  }
}

TEST(Measure, AWrongResultShows) {
  const GemmProblem p = problem_of(Gemm::OUT, recipe("mxfp8_rceil"), at::kFloat);
  const at::Tensor result = low_precision_gemm(p);
  EXPECT_NEAR(measure(p, at::zeros_like(result), kLittle).result.sqnr_db(), 0, 1e-9);
  EXPECT_LT(measure(p, result * 100, kLittle).result.sqnr_db(), -30);
  at::Tensor bad = result.clone();
  bad.fill_(std::nanf(""));
  const ErrorSums sums = measure(p, bad, kLittle).result;
  EXPECT_EQ(sums.nonfinite, sums.values);
}

// ---- single values ----------------------------------------------------------
GemmSums of_left(const at::Tensor& left, const OperandFormat& format) {
  const GemmProblem p{.gemm = Gemm::OUT,
                      .left = left,
                      .right = at::ones({1, 4, left.size(1)}),
                      .groups = {},
                      .formats = {format, HighPrecision{}},
                      .out_dtype = at::kFloat};
  return measure(p, at::zeros({left.size(0), 4}), kEverything);
}

TEST(Measure, SaturatedIsWhatRoundingWouldHaveTakenBeyondTheLargestCode) {
  const MxFormat floor{ElemDtype::E4M3, ScaleCalculationMode::FLOOR};
  const auto saturated = [&](float value, const OperandFormat& format) {
    at::Tensor x = at::ones({1, 32});
    x[0][5] = value;
    return of_left(x, format).left.saturated;
  };
  EXPECT_EQ(saturated(448, floor), 0);
  EXPECT_EQ(saturated(464, floor), 0);  // the tie: 448 is nearest
  EXPECT_EQ(saturated(465, floor), 1);
  EXPECT_EQ(saturated(-511, floor), 1);
  EXPECT_EQ(saturated(512, floor), 0);  // the next scale
  EXPECT_EQ(saturated(511, MxFormat{ElemDtype::E4M3, ScaleCalculationMode::RCEIL}), 0);
  EXPECT_EQ(saturated(6.9f, MxFormat{ElemDtype::E2M1, ScaleCalculationMode::FLOOR}), 0);
  EXPECT_EQ(saturated(7.5f, MxFormat{ElemDtype::E2M1, ScaleCalculationMode::FLOOR}), 1);
  for (const bool pow2 : {false, true}) {
    EXPECT_EQ(saturated(1000, Float8Format{ElemDtype::E4M3, ScalingGranularity::AXISWISE, pow2}),
              0);
  }
}

TEST(Measure, UnderflowIsOfValuesThatAreNotZero) {
  const MxFormat mx{ElemDtype::E4M3, ScaleCalculationMode::RCEIL};
  at::Tensor x = at::zeros({1, 64});
  x[0][0] = 1;
  x[0][1] = 1e-9f;
  x[0][40] = 1e-9f;  // alone in its block: kept
  const OperandSums sums = of_left(x, mx).left;
  EXPECT_EQ(sums.nonzero, 3);
  EXPECT_EQ(sums.underflow, 1);
}

TEST(Measure, ATensorsScaleFollowsFromValuesThatAreNotInTheSample) {
  at::Tensor x = at::full({100, 64}, 1e-3f);
  x[99][63] = 448 * 1024.0f;  // 1e-3 / 1024 is below half the smallest e4m3
  const GemmProblem p{
      .gemm = Gemm::OUT,
      .left = x,
      .right = at::ones({1, 4, 64}),
      .groups = {},
      .formats = {Float8Format{ElemDtype::E4M3, ScalingGranularity::TENSORWISE, false},
                  HighPrecision{}},
      .out_dtype = at::kFloat};
  const OperandSums sums = measure(p, at::zeros({100, 4}), Sampling{256, 64, 2, 0}).left;
  EXPECT_EQ(sums.error.values, 256);
  EXPECT_EQ(sums.underflow, 256);
  EXPECT_EQ(sums.amax, 448 * 1024.0);
}

TEST(Measure, NonfiniteValuesAreCountedAndLeftOutOfTheRest) {
  const MxFormat mx{ElemDtype::E4M3, ScaleCalculationMode::RCEIL};
  at::Tensor x = at::ones({2, 64});
  x[0][0] = std::nanf("");
  const OperandSums sums = of_left(x, mx).left;
  EXPECT_EQ(sums.error.nonfinite, 32);  // its block
  EXPECT_TRUE(std::isnan(sums.amax));
  EXPECT_EQ(sums.error.signal, 96);
  EXPECT_EQ(of_left(x, HighPrecision{}).left.error.nonfinite, 1);
}

TEST(Measure, EmptyProductsHaveNoSums) {
  const auto config = recipe("mxfp8_rceil");
  for (const Gemm gemm : kGemms) {
    GemmProblem p = problem_of(gemm, config, at::kFloat);
    p.groups = offs_of({0, 0, 0, 0, 0});  // all rows in no group
    GemmSums sums = measure(p, low_precision_gemm(p), kLittle);
    EXPECT_EQ(sums.left.error.values, 0);
    EXPECT_EQ(sums.tokens, std::vector<int64_t>(5, 0));
    p.left = p.left.source().narrow(0, 0, 0);
    if (gemm == Gemm::GRAD_WEIGHT) p.right = p.right.source().narrow(0, 0, 0);
    EXPECT_EQ(measure(p, low_precision_gemm(p), kLittle).result.values, 0);
  }
}

TEST(Measure, SumsAddUp) {
  const GemmProblem p = problem_of(Gemm::OUT, recipe("mxfp8_rceil"), at::kFloat);
  const GemmSums one = measure(p, low_precision_gemm(p), kEverything);
  GemmSums two = one;
  two.add(one);
  EXPECT_EQ(two.calls, 2);
  EXPECT_EQ(two.left.error.values, 2 * one.left.error.values);
  EXPECT_DOUBLE_EQ(two.result.sqnr_db(), one.result.sqnr_db());
  EXPECT_EQ(two.left.amax, one.left.amax);
  EXPECT_EQ(two.tokens, (std::vector<int64_t>{128, 0, 66, 6, 200}));
  GemmSums nan = one;
  nan.left.amax = std::nan("");
  two.add(nan);
  two.add(one);
  EXPECT_TRUE(std::isnan(two.left.amax));
}

TEST(Measure, SpacedIndicesRiseAndStayInside) {
  EXPECT_EQ(indices_of(spaced(5, 9), 0.9), (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(indices_of(spaced(100, 4), 0), (std::vector<int64_t>{0, 25, 50, 75}));
  EXPECT_EQ(indices_of(spaced(100, 4), 0.5), (std::vector<int64_t>{12, 37, 62, 87}));
  EXPECT_EQ(indices_of(spaced(0, 4), 0.5), std::vector<int64_t>{});
  for (int i = 0; i < 100; ++i) {
    const auto indices = indices_of(spaced(97, 31), i / 100.0);
    EXPECT_TRUE(std::ranges::adjacent_find(indices, std::greater_equal{}) == indices.end());
    EXPECT_LT(indices.back(), 97);
  }
}

}  // namespace
}  // namespace moe8
