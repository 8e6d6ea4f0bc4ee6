// SPDX-License-Identifier: BSD-3-Clause
// The three GEMMs of every recipe against the float64 reference: exactly for integers, by SQNR for
// the rest; ragged groups, tails, dispatch.
#include "gemm/low_precision_gemm.h"

#include <ATen/ATen.h>

#include <random>

#include "autograd/training_formats.h"
#include "gemm/torch_gemm.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using testing::offs_of;
using testing::same_bits;
using testing::sqnr_db;

constexpr Gemm kGemms[] = {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT};

struct Sizes {
  std::vector<int64_t> groups;  // rows of each expert
  int64_t tail;                 // rows of none
  int64_t N, K;
};

GemmFormats formats_of(const TrainingFormats& formats, Gemm gemm) {
  return gemm == Gemm::OUT          ? formats.out
         : gemm == Gemm::GRAD_INPUT ? formats.grad_input
                                    : formats.grad_weight;
}

template <typename Fill>
GemmProblem make_problem(Gemm gemm, const Config& config, const Sizes& s, at::ScalarType dtype,
                         Fill fill) {
  int64_t M = s.tail;
  for (int64_t size : s.groups) M += size;
  const int64_t E = static_cast<int64_t>(s.groups.size());
  const at::Tensor left = gemm == Gemm::OUT ? fill({M, s.K}, 1) : fill({M, s.N}, 1);
  const at::Tensor right = gemm == Gemm::GRAD_WEIGHT ? fill({M, s.K}, 2) : fill({E, s.N, s.K}, 2);
  return {.gemm = gemm,
          .left = left,
          .right = right,
          .groups = offs_of(s.groups),
          .formats = formats_of(training_formats(config), gemm),
          .out_dtype = dtype};
}

const std::vector<Sizes>& ragged() {
  static const std::vector<Sizes> all = {
      {{0, 1, 31, 32, 33, 127, 128, 129}, 0, 48, 80},
      {{0, 1, 31, 32, 33, 7}, 11, 17, 33},
      {{300}, 0, 64, 64},
      {{0, 0, 64, 0}, 5, 32, 16},
      {{0, 0}, 3, 8, 8},
      {{5, 3}, 0, 1, 1},
  };
  return all;
}

TEST(LowPrecisionGemm, IsExactForSmallIntegersInEveryRecipe) {
  // Integers up to 3 are codes of every e4m3 recipe whatever its power-of-two scale, and the sums
  // are exact in float32: any order gives the same bits.
  for (const RecipeInfo& recipe : all_recipes()) {
    if (recipe.name == "tensorwise" || recipe.name.find("mxfp4") == 0) continue;
    for (const Sizes& sizes : ragged()) {
      for (Gemm gemm : kGemms) {
        const GemmProblem problem = make_problem(
            gemm, recipe.config, sizes, at::kFloat, [](at::IntArrayRef shape, uint64_t seed) {
              return testing::small_integers(shape, at::kBFloat16, seed);
            });
        const at::Tensor expected = testing::reference_gemm(problem).to(at::kFloat);
        ASSERT_TRUE(at::equal(expected, low_precision_gemm(problem)))
            << recipe.name << " " << problem.describe();
        GemmProblem rounded = problem;
        rounded.out_dtype = at::kBFloat16;
        ASSERT_TRUE(at::equal(expected.to(at::kBFloat16), low_precision_gemm(rounded)))
            << recipe.name << " " << problem.describe();
      }
    }
  }
}

TEST(LowPrecisionGemm, DiffersFromTheReferenceByRoundingOnly) {
  for (const RecipeInfo& recipe : all_recipes()) {
    for (at::ScalarType in : {at::kBFloat16, at::kFloat}) {
      for (at::ScalarType out : {at::kBFloat16, at::kFloat}) {
        for (Gemm gemm : kGemms) {
          GemmProblem problem = make_problem(gemm, recipe.config, ragged()[1], out,
                                             [&](at::IntArrayRef shape, uint64_t seed) {
                                               return testing::wide_normal(shape, in, seed, 2);
                                             });
          // One scale for a whole tensor is a linear's; its products have one group.
          if (!is_grouped(recipe.config)) {
            problem.groups = {};
            if (gemm != Gemm::GRAD_WEIGHT) problem.right = problem.right.source().narrow(0, 0, 1);
          }
          const double db = sqnr_db(testing::reference_gemm(problem), low_precision_gemm(problem));
          EXPECT_GE(db, out == at::kFloat ? 110 : 50) << recipe.name << " " << problem.describe();
        }
      }
    }
  }
}

TEST(LowPrecisionGemm, EmptyGroupsAndTailsAreZero) {
  const Sizes sizes{{0, 40, 0, 3}, 9, 24, 40};
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp"}) {
    for (at::ScalarType out : {at::kBFloat16, at::kFloat}) {
      const auto fill = [](at::IntArrayRef shape, uint64_t seed) {
        at::Tensor x = testing::wide_normal(shape, at::kBFloat16, seed);
        if (shape.size() == 2) x.slice(0, 43).fill_(std::nanf(""));  // garbage rows of no expert
        return x;
      };
      for (Gemm gemm : {Gemm::OUT, Gemm::GRAD_INPUT}) {
        const at::Tensor result =
            low_precision_gemm(make_problem(gemm, recipe(name), sizes, out, fill));
        EXPECT_TRUE(result.slice(0, 43).eq(0).all().item<bool>());
        EXPECT_TRUE(result.isfinite().all().item<bool>());
      }
      const at::Tensor grad =
          low_precision_gemm(make_problem(Gemm::GRAD_WEIGHT, recipe(name), sizes, out, fill));
      EXPECT_TRUE(grad[0].eq(0).all().item<bool>() && grad[2].eq(0).all().item<bool>());
      EXPECT_TRUE(grad.isfinite().all().item<bool>());
    }
  }
}

TEST(LowPrecisionGemm, ANaNStaysWithItsTokens) {
  const Sizes sizes{{40, 40}, 0, 24, 64};
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    GemmProblem problem = make_problem(Gemm::OUT, recipe(name), sizes, at::kBFloat16,
                                       [](at::IntArrayRef shape, uint64_t seed) {
                                         return testing::wide_normal(shape, at::kBFloat16, seed);
                                       });
    problem.left.source()[7][3] = std::nanf("");
    const at::Tensor out = low_precision_gemm(problem);
    EXPECT_TRUE(out[7].isnan().all().item<bool>());
    EXPECT_EQ(out.isnan().sum().item<int>(), 24);
    problem = make_problem(Gemm::GRAD_WEIGHT, recipe(name), sizes, at::kBFloat16,
                           [](at::IntArrayRef shape, uint64_t seed) {
                             return testing::wide_normal(shape, at::kBFloat16, seed);
                           });
    problem.left.source()[7][3] = std::nanf("");
    const at::Tensor grad = low_precision_gemm(problem);
    EXPECT_TRUE(grad[0][3].isnan().all().item<bool>());
    EXPECT_EQ(grad.isnan().sum().item<int>(), 64);
  }
}

TEST(LowPrecisionGemm, RandomRaggedProblemsAgreeWithTheReference) {
  std::mt19937 random(7);
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % (high - low + 1));
  };
  const std::vector<RecipeInfo> recipes = testing::recipes_of_experts();
  for (size_t i = 0; i < 150; ++i) {
    const RecipeInfo& recipe = recipes[i % recipes.size()];
    Sizes sizes{{}, pick(0, 5), pick(1, 70), pick(1, 70)};
    for (int64_t e = pick(1, 7); e > 0; --e) sizes.groups.push_back(pick(0, 3) ? pick(0, 70) : 0);
    const Gemm gemm = kGemms[i % 3];
    const GemmProblem problem = make_problem(
        gemm, recipe.config, sizes, at::kBFloat16, [&](at::IntArrayRef shape, uint64_t seed) {
          return testing::wide_normal(shape, at::kBFloat16, seed + uint64_t{10} * i, 3);
        });
    const at::Tensor expected = testing::reference_gemm(problem);
    const at::Tensor got = low_precision_gemm(problem);
    ASSERT_EQ(got.sizes(), expected.sizes());
    if (expected.ne(0).any().item<bool>()) {
      ASSERT_GE(sqnr_db(expected, got), 48) << recipe.name << " " << problem.describe();
    } else {
      ASSERT_TRUE(got.eq(0).all().item<bool>()) << problem.describe();
    }
    ASSERT_TRUE(same_bits(got, low_precision_gemm(problem)))
        << "not the same twice: " << problem.describe();
  }
}

// bf16 weights for float32 products: matrix by matrix, or from a form of all that is there already.
TEST(LowPrecisionGemm, FewRowsConvertTheirExpertsAlone) {
  const Sizes sizes{{0, 3, 0, 1, 2}, 1, 24, 40};
  const auto fill = [](at::IntArrayRef shape, uint64_t seed) {
    return testing::wide_normal(shape, at::kBFloat16, seed);
  };
  for (const Gemm gemm : {Gemm::OUT, Gemm::GRAD_INPUT}) {
    GemmProblem problem = make_problem(gemm, recipe("mxfp8_rceil"), sizes, at::kFloat, fill);
    problem.formats.left = problem.formats.right = HighPrecision{};
    const at::Tensor second = fill({5, 24, 40}, 3);
    for (const bool is_joined : {false, true}) {
      if (is_joined) {
        problem.right = Operand::joined({problem.right.source(), second}, make_form_store());
        if (gemm == Gemm::GRAD_INPUT) problem.left = fill({7, 48}, 4);
      }
      const FormKey key = problem.right_key(Encoding::FLOAT32);
      const at::Tensor by_matrix = torch_float32_gemm(problem);
      EXPECT_FALSE(problem.right.has(key));
      problem.right.form(key, problem.groups);
      EXPECT_TRUE(same_bits(torch_float32_gemm(problem), by_matrix)) << problem.describe();
    }
  }
}

TEST(LowPrecisionGemm, KernelsRefuseWithAReason) {
  GemmProblem problem = make_problem(Gemm::OUT, recipe("tensorwise"), {{8}, 0, 8, 8}, at::kBFloat16,
                                     [](at::IntArrayRef shape, uint64_t seed) {
                                       return testing::small_integers(shape, at::kBFloat16, seed);
                                     });
  EXPECT_THAT(torch_bf16_refusal(problem).value_or(""),
              ::testing::HasSubstr("operand needs float32"));
  problem.formats = training_formats(recipe("fp8_rowwise")).out;
  EXPECT_EQ(torch_bf16_refusal(problem).has_value(), !cpu_prefers_bf16());
  problem.out_dtype = at::kFloat;
  EXPECT_THAT(torch_bf16_refusal(problem).value_or(""),
              ::testing::HasSubstr("round a float32 result"));
  problem.left = problem.left.source().to(at::kMeta);
  EXPECT_THAT(testing::error_of([&] { low_precision_gemm(problem); }),
              ::testing::AllOf(::testing::HasSubstr("no kernel for"),
                               ::testing::HasSubstr("operands are on meta")));
}

}  // namespace
}  // namespace moe8
