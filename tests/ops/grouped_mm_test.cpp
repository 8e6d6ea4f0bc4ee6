// SPDX-License-Identifier: BSD-3-Clause
// The grouped operations as a caller sees them: accuracy, gradients, edges, misuse.
#include "moe8/grouped_mm.h"

#include <torch/torch.h>

#include "autograd/training_formats.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::offs_of;
using testing::same_bits;
using testing::sqnr_db;

struct Inputs {
  at::Tensor A, W, offs, grad_out;
};

Inputs make_inputs(const std::vector<int64_t>& groups, int64_t tail, int64_t N, int64_t K,
                   at::ScalarType dtype = at::kBFloat16) {
  torch::manual_seed(1);
  const at::Tensor offs = offs_of(groups);
  const int64_t M = offs[-1].item<int>() + tail;
  return {
      torch::randn({M, K}).to(dtype).requires_grad_(),
      (torch::randn({static_cast<int64_t>(groups.size()), N, K}) / 8).to(dtype).requires_grad_(),
      offs, torch::randn({M, N}).to(dtype)};
}

struct Results {
  at::Tensor out, grad_A, grad_W;
};

template <typename Op>
Results forward_backward(const Inputs& in, Op op) {
  in.A.mutable_grad() = at::Tensor();
  in.W.mutable_grad() = at::Tensor();
  const at::Tensor out = op(in.A, in.W.transpose(-2, -1), in.offs);
  out.backward(in.grad_out.to(out.scalar_type()));
  return {out.detach(), in.A.grad(), in.W.grad()};
}

// The product in high precision, in float32, expert by expert.
Results in_high_precision(const Inputs& in) {
  const Inputs exact{in.A.detach().to(at::kFloat).requires_grad_(),
                     in.W.detach().to(at::kFloat).requires_grad_(), in.offs,
                     in.grad_out.to(at::kFloat)};
  return forward_backward(
      exact, [](const at::Tensor& A, const at::Tensor& B_t, const at::Tensor& offs) {
        std::vector<at::Tensor> parts;
        int64_t begin = 0;
        for (int64_t e = 0; e < offs.numel(); ++e) {
          const int64_t end = offs[e].item<int>();
          parts.push_back(A.slice(0, begin, end).mm(B_t[e]));
          begin = end;
        }
        parts.push_back(at::zeros({A.size(0) - begin, B_t.size(2)}, A.options()));
        return at::cat(parts);
      });
}

TEST(GroupedMM, ReachesTheAccuracyBarOfEveryRecipe) {
  const Inputs in = make_inputs({0, 100, 33, 260, 1, 118}, 0, 96, 256);
  const Results expected = in_high_precision(in);
  for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
    const Results got = forward_backward(in, [&](const auto& A, const auto& B_t, const auto& offs) {
      return quantize_then_scaled_grouped_mm(A, B_t, offs, recipe.config);
    });
    const testing::AccuracyBar& bar = testing::accuracy_bar(recipe.name);
    EXPECT_GE(sqnr_db(expected.out, got.out), bar.out) << recipe.name;
    EXPECT_GE(sqnr_db(expected.grad_A, got.grad_A), bar.grad_input) << recipe.name;
    EXPECT_GE(sqnr_db(expected.grad_W, got.grad_W), bar.grad_weight) << recipe.name;
  }
}

TEST(GroupedMM, EachGradientIsTheGemmThatTheTableSays) {
  const Inputs in = make_inputs({40, 0, 25}, 6, 48, 64);
  for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
    const TrainingFormats formats = training_formats(recipe.config);
    const Results got = forward_backward(in, [&](const auto& A, const auto& B_t, const auto& offs) {
      return quantize_then_scaled_grouped_mm(A, B_t, offs, recipe.config);
    });
    const auto gemm = [&](Gemm which, const GemmFormats& f, const at::Tensor& left,
                          const at::Tensor& right) {
      return low_precision_gemm({.gemm = which,
                                 .left = left.detach(),
                                 .right = right.detach(),
                                 .groups = in.offs,
                                 .formats = f,
                                 .out_dtype = at::kBFloat16});
    };
    EXPECT_TRUE(same_bits(gemm(Gemm::OUT, formats.out, in.A, in.W), got.out)) << recipe.name;
    EXPECT_TRUE(
        same_bits(gemm(Gemm::GRAD_INPUT, formats.grad_input, in.grad_out, in.W), got.grad_A))
        << recipe.name;
    EXPECT_TRUE(
        same_bits(gemm(Gemm::GRAD_WEIGHT, formats.grad_weight, in.grad_out, in.A), got.grad_W))
        << recipe.name;
  }
}

TEST(GroupedMM, DtypesOfResultsAndGradients) {
  for (at::ScalarType a : {at::kBFloat16, at::kFloat}) {
    for (at::ScalarType w : {at::kBFloat16, at::kFloat}) {
      for (at::ScalarType out : {at::kBFloat16, at::kFloat}) {
        Inputs in = make_inputs({10, 22}, 0, 16, 32, a);
        in.W = in.W.detach().to(w).requires_grad_();
        const Results fp8 =
            forward_backward(in, [&](const auto& A, const auto& B_t, const auto& offs) {
              return to_fp8_rowwise_then_scaled_grouped_mm(A, B_t, offs, out);
            });
        EXPECT_EQ(fp8.out.scalar_type(), out);
        EXPECT_EQ(fp8.grad_A.scalar_type(), a);
        EXPECT_EQ(fp8.grad_W.scalar_type(), w);
      }
    }
  }
}

TEST(GroupedMM, OnlyWantedGradientsAreComputed) {
  const Inputs both = make_inputs({10, 22}, 0, 16, 32);
  const auto op = [](const at::Tensor& A, const at::Tensor& W, const at::Tensor& offs) {
    return to_mxfp8_then_scaled_grouped_mm(A, W.transpose(-2, -1), offs);
  };
  const at::Tensor frozen_W = both.W.detach();
  op(both.A, frozen_W, both.offs).backward(both.grad_out);
  EXPECT_TRUE(both.A.grad().defined());
  EXPECT_FALSE(frozen_W.grad().defined());
  op(both.A.detach(), both.W, both.offs).sum().backward();  // a gradient with stride 0
  EXPECT_TRUE(both.W.grad().defined());
  EXPECT_FALSE(op(both.A.detach(), frozen_W, both.offs).requires_grad());
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(op(both.A, both.W, both.offs).requires_grad());
}

TEST(GroupedMM, AnyLayoutOfTheWeight) {
  const Inputs in = make_inputs({10, 22}, 0, 16, 32);
  const at::Tensor expected = to_mxfp8_then_scaled_grouped_mm(in.A, in.W.transpose(1, 2), in.offs);
  const at::Tensor row_major = in.W.transpose(1, 2).contiguous();
  EXPECT_TRUE(same_bits(expected, to_mxfp8_then_scaled_grouped_mm(in.A, row_major, in.offs)));
  const at::Tensor padded = at::constant_pad_nd(in.W, {3, 5}).slice(2, 3, 35).transpose(1, 2);
  EXPECT_TRUE(same_bits(expected, to_mxfp8_then_scaled_grouped_mm(in.A, padded, in.offs)));
}

TEST(GroupedMM, SizesOfNothing) {
  for (const auto& [groups, tail] :
       {std::pair<std::vector<int64_t>, int64_t>{{0, 0}, 0}, {{0, 0}, 5}}) {
    const Inputs in = make_inputs(groups, tail, 16, 32);
    for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
      const Results got =
          forward_backward(in, [&](const auto& A, const auto& B_t, const auto& offs) {
            return quantize_then_scaled_grouped_mm(A, B_t, offs, recipe.config);
          });
      EXPECT_EQ(got.out.sizes(), in.grad_out.sizes());
      EXPECT_TRUE(got.out.eq(0).all().item<bool>() && got.grad_A.eq(0).all().item<bool>() &&
                  got.grad_W.eq(0).all().item<bool>());
    }
  }
}

TEST(GroupedMM, QuantizedActivationsGiveTheSameBits) {
  const Inputs in = make_inputs({10, 0, 55}, 3, 16, 70);
  const auto config =
      MXFP8GroupedMMConfig::from_recipe(MXFP8GroupedMMRecipe::MXFP8_RCEIL_WGRAD_WITH_HP);
  const MXTensor codes = quantize_mx(in.A, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1);
  const at::Tensor expected =
      to_mxfp8_then_scaled_grouped_mm(in.A, in.W.transpose(1, 2), in.offs, config);
  const at::Tensor got =
      to_mxfp8_then_scaled_grouped_mm(codes, in.W.transpose(1, 2), in.offs, config);
  EXPECT_TRUE(same_bits(expected, got));
  got.backward(in.grad_out);
  const Inputs values{dequantize(codes).requires_grad_(), in.W.detach().requires_grad_(), in.offs,
                      in.grad_out};
  const Results of_values =
      forward_backward(values, [&](const auto& A, const auto& B_t, const auto& offs) {
        return to_mxfp8_then_scaled_grouped_mm(A, B_t, offs, config);
      });
  EXPECT_TRUE(same_bits(of_values.grad_W, in.W.grad()));
  EXPECT_FALSE(in.A.grad().defined());
  EXPECT_THAT(
      error_of([&] { to_mxfp8_then_scaled_grouped_mm(codes, in.W.transpose(1, 2), in.offs); }),
      HasSubstr("config.wgrad_with_hp: expected true"));
  const MXTensor along_tokens = quantize_mx(in.A, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0);
  EXPECT_THAT(error_of([&] {
                to_mxfp8_then_scaled_grouped_mm(along_tokens, in.W.transpose(1, 2), in.offs,
                                                config);
              }),
              HasSubstr("blocks along K"));
}

// Row by row: what `bias` is for each row of the output, zero in no group.
at::Tensor bias_rows(const at::Tensor& bias, const at::Tensor& offs, int64_t M) {
  const at::Tensor rows = at::zeros({M, bias.size(1)}, bias.options());
  for (int64_t e = 0, begin = 0; e < offs.numel(); ++e) {
    const int64_t end = offs[e].item<int>();
    rows.slice(0, begin, end).copy_(bias[e].expand({end - begin, -1}));
    begin = end;
  }
  return rows;
}

TEST(GroupedMM, BiasIsAddedInTheOutputDtypeAndSummedInFloat32) {
  const Inputs in = make_inputs({40, 0, 25}, 6, 48, 64);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor bias = torch::randn({3, 48}).to(dtype).requires_grad_();
    for (const RecipeInfo& recipe : testing::recipes_of_experts()) {
      const auto product = [&](const std::optional<at::Tensor>& b) {
        return forward_backward(in, [&](const auto& A, const auto& B_t, const auto& offs) {
          return quantize_then_scaled_grouped_mm(A, B_t, offs, recipe.config, b);
        });
      };
      bias.mutable_grad() = at::Tensor();
      const Results without = product(std::nullopt), with = product(bias);
      const at::Tensor rows = bias_rows(bias.detach().to(at::kBFloat16), in.offs, 71);
      EXPECT_TRUE(same_bits(without.out + rows, with.out)) << recipe.name;
      EXPECT_TRUE(same_bits(without.grad_A, with.grad_A)) << recipe.name;
      EXPECT_TRUE(same_bits(without.grad_W, with.grad_W)) << recipe.name;
      const at::Tensor g = in.grad_out.to(at::kFloat);
      const at::Tensor exact =
          at::stack({g.slice(0, 0, 40).sum(0), at::zeros({48}), g.slice(0, 40, 65).sum(0)});
      EXPECT_EQ(bias.grad().scalar_type(), dtype);
      EXPECT_TRUE(at::allclose(exact, bias.grad().to(at::kFloat), dtype == at::kFloat ? 1e-5 : 8e-3,
                               dtype == at::kFloat ? 1e-5 : 1e-6))
          << recipe.name;
    }
  }
}

TEST(GroupedMM, BiasAlone) {
  const Inputs in = make_inputs({10, 22}, 3, 16, 32);
  const at::Tensor A = in.A.detach(), B_t = in.W.detach().transpose(1, 2);
  const at::Tensor bias = torch::randn({2, 16}).requires_grad_();
  const at::Tensor out = to_fp8_rowwise_then_scaled_grouped_mm(A, B_t, in.offs, at::kFloat, bias);
  EXPECT_TRUE(same_bits(to_fp8_rowwise_then_scaled_grouped_mm(A, B_t, in.offs, at::kFloat) +
                            bias_rows(bias.detach(), in.offs, 35),
                        out));
  out.sum().backward();
  EXPECT_TRUE(
      same_bits(at::tensor({10.0f, 22.0f}).unsqueeze(1).expand({2, 16}).contiguous(), bias.grad()));
  const at::Tensor grad =
      torch::autograd::grad({to_mxfp8_then_scaled_grouped_mm(in.A, B_t, in.offs, {}, bias).sum()},
                            {bias, in.A}, {}, std::nullopt, true)[0];
  EXPECT_THAT(error_of([&] { grad.sum().backward(); }),
              HasSubstr("cannot be differentiated twice"));
}

TEST(GroupedMM, BiasOfQuantizedActivations) {
  const Inputs in = make_inputs({10, 0, 55}, 3, 16, 70);
  const auto config =
      MXFP8GroupedMMConfig::from_recipe(MXFP8GroupedMMRecipe::MXFP8_RCEIL_WGRAD_WITH_HP);
  const MXTensor codes = quantize_mx(in.A, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1);
  const at::Tensor bias = torch::randn({3, 16});
  const at::Tensor B_t = in.W.transpose(1, 2);
  EXPECT_TRUE(same_bits(to_mxfp8_then_scaled_grouped_mm(in.A, B_t, in.offs, config, bias),
                        to_mxfp8_then_scaled_grouped_mm(codes, B_t, in.offs, config, bias)));
}

TEST(GroupedMM, ASecondDerivativeIsAnError) {
  const Inputs in = make_inputs({10, 22}, 0, 16, 32);
  const at::Tensor out = to_fp8_rowwise_then_scaled_grouped_mm(in.A, in.W.transpose(1, 2), in.offs);
  const at::Tensor grad = torch::autograd::grad({out.sum()}, {in.A}, {}, std::nullopt, true)[0];
  EXPECT_THAT(error_of([&] { grad.sum().backward(); }),
              HasSubstr("cannot be differentiated twice"));
}

TEST(GroupedMM, MisuseIsToldInWords) {
  const Inputs in = make_inputs({10, 22}, 0, 16, 32);
  const at::Tensor B_t = in.W.transpose(1, 2);
  const auto message = [&](const at::Tensor& A, const at::Tensor& B, const at::Tensor& offs) {
    return error_of([&] { to_mxfp8_then_scaled_grouped_mm(A, B, offs); });
  };
  EXPECT_THAT(
      message(in.A.to(at::kHalf), B_t, in.offs),
      HasSubstr(
          "[to_mxfp8_then_scaled_grouped_mm] A: expected bfloat16 or float32, got Half [32, 32]"));
  EXPECT_THAT(message(in.A.unsqueeze(0), B_t, in.offs),
              HasSubstr("A: expected [M, K], got [1, 32, 32]"));
  EXPECT_THAT(message(in.A, in.W, in.offs), HasSubstr("W.transpose(-2, -1)"));
  EXPECT_THAT(message(in.A, B_t[0], in.offs), HasSubstr("B_t: expected [E, K, N]"));
  EXPECT_THAT(message(in.A, B_t, in.offs.to(at::kLong)),
              HasSubstr("offs: expected 1-D int32 end rows"));
  EXPECT_THAT(message(in.A, B_t, offs_of({32})),
              HasSubstr("expected 2 end rows, one an expert, got 1"));
  EXPECT_THAT(message(in.A, B_t, offs_of({10, 23})),
              HasSubstr("at most 32, the rows there are, got 33"));
  EXPECT_THAT(message(in.A, B_t, at::tensor({10, 9}, at::kInt)),
              HasSubstr("non-decreasing end rows from 0 on, got 9 after 10"));
  EXPECT_THAT(message(in.A, B_t, at::Tensor()), HasSubstr("undefined"));
  EXPECT_THAT(message(in.A, B_t.to(at::kMeta), in.offs),
              HasSubstr("B_t: expected a dense tensor, got a meta tensor"));
  EXPECT_THAT(
      error_of([&] { to_mxfp8_then_scaled_grouped_mm(in.A, B_t, in.offs, {}, at::zeros({16})); }),
      HasSubstr("bias: expected floating-point [2, 16], a row for each expert, on cpu, got "
                "Float [16] on cpu"));
  EXPECT_THAT(
      error_of([&] {
        to_mxfp8_then_scaled_grouped_mm(in.A, B_t, in.offs, {}, at::zeros({2, 16}, at::kInt));
      }),
      HasSubstr("bias: expected floating-point [2, 16]"));
  EXPECT_THAT(
      error_of([&] { to_fp8_rowwise_then_scaled_grouped_mm(in.A, B_t, in.offs, at::kHalf); }),
      HasSubstr("out_dtype: expected bfloat16 or float32, got Half"));
  EXPECT_THAT(
      error_of([&] { quantize_then_scaled_grouped_mm(in.A, B_t, in.offs, MXLinearConfig{}); }),
      HasSubstr(
          "config: expected an FP8GroupedMMConfig or MXFP8GroupedMMConfig, got MXLinearConfig("));
}

}  // namespace
}  // namespace moe8
