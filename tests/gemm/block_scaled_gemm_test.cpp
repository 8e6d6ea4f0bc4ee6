// SPDX-License-Identifier: BSD-3-Clause
// What at::_scaled_grouped_mm is given for MX products on Blackwell. The call itself needs such a
// GPU; here its arguments are read back by the layouts' definitions, multiplied in float64 group by
// group, and must give the reference's product bit for bit.
#include "gemm/block_scaled_gemm.h"

#include <ATen/ATen.h>

#include "autograd/training_formats.h"
#include "moe8/mx.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using testing::offs_of;

constexpr Gemm kGemms[] = {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT};
constexpr int64_t kN = 96, kK = 160;

struct Sizes {
  std::vector<int64_t> groups;
  int64_t tail;

  int64_t tokens() const {
    int64_t sum = tail;
    for (const int64_t size : groups) sum += size;
    return sum;
  }
};

const std::vector<Sizes>& all_sizes() {
  static const std::vector<Sizes> all = {{{0, 1, 31, 32, 33, 127, 128, 129}, 0},
                                         {{0, 1, 31, 33, 7}, 11},
                                         {{300}, 0},
                                         {{0, 0, 64, 0}, 200},
                                         {{0, 0}, 3},
                                         {{128, 256}, 0}};
  return all;
}

GemmProblem make_problem(Gemm gemm, const GemmFormats& formats, const Sizes& s, uint64_t seed) {
  const int64_t M = s.tokens(), E = static_cast<int64_t>(s.groups.size());
  const auto values = [&](at::IntArrayRef shape, uint64_t more) {
    return testing::wide_normal(shape, at::kBFloat16, seed + more, 6);
  };
  return {.gemm = gemm,
          .left = values({M, gemm == Gemm::OUT ? kK : kN}, 1),
          .right = gemm == Gemm::GRAD_WEIGHT ? values({M, kK}, 2) : values({E, kN, kK}, 2),
          .groups = offs_of(s.groups),
          .formats = formats,
          .out_dtype = at::kFloat};
}

GemmFormats formats_of(const Config& config, Gemm gemm) {
  const TrainingFormats formats = training_formats(config);
  return gemm == Gemm::OUT          ? formats.out
         : gemm == Gemm::GRAD_INPUT ? formats.grad_input
                                    : formats.grad_weight;
}

// The values of codes [..., C] with scales [..., C / 32].
at::Tensor values_of(const at::Tensor& codes, const at::Tensor& scale) {
  return codes.to(at::kDouble) *
         scale.to(at::kDouble).repeat_interleave(kMxBlock, -1).slice(-1, 0, codes.size(-1));
}

// The layout's definition, element by element: moe8/blocked_scales.h, first lines.
at::Tensor unblock(const at::Tensor& blocked, int64_t rows, int64_t cols) {
  const at::Tensor bytes = blocked.contiguous().view(at::kByte).flatten();
  const at::Tensor scale = at::empty({rows, cols}, at::kByte);
  const int64_t tiles_wide = (cols + 3) / 4;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t tile = r / 128 * tiles_wide + c / 4;
      const int64_t at = tile * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
      scale[r][c].copy_(bytes[at]);
    }
  }
  return scale.view(at::kFloat8_e8m0fnu);
}

at::Tensor multiply_by_rows(const BlockScaledCall& call) {
  const at::Tensor b = call.b.transpose(1, 2);  // [E, columns, C]
  const at::Tensor out = at::full({call.a.size(0), b.size(1)}, NAN, at::kDouble);
  int64_t begin = 0;
  for (int64_t e = 0; e < b.size(0); ++e) {
    const int64_t end = call.tokens.ends[e].item<int64_t>();
    // A group's scales begin at its first row, in tiles of its own.
    const at::Tensor scale_a =
        unblock(call.scale_a.slice(0, begin, end), end - begin, (call.a.size(1) + 31) / 32);
    const at::Tensor scale_b = unblock(call.scale_b[e], b.size(1), (b.size(2) + 31) / 32);
    out.slice(0, begin, end)
        .copy_(
            values_of(call.a.slice(0, begin, end), scale_a).matmul(values_of(b[e], scale_b).t()));
    begin = end;
  }
  return out;
}

at::Tensor multiply_by_columns(const BlockScaledCall& call) {
  const at::Tensor b = call.b.t();  // [K, P]
  const int64_t E = call.tokens.ends.numel();
  const at::Tensor out = at::full({E, call.a.size(0), b.size(0)}, NAN, at::kDouble);
  const auto group_values = [](const at::Tensor& codes, const at::Tensor& scale, int64_t begin,
                               int64_t end) {
    const int64_t rows = (codes.size(0) + 127) / 128 * 128;
    const at::Tensor flat = scale.view(at::kByte).flatten();
    const at::Tensor mine = flat.slice(0, rows * begin / 32, rows * end / 32);
    return values_of(codes.slice(1, begin, end), unblock(mine, codes.size(0), (end - begin) / 32));
  };
  int64_t begin = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t end = call.tokens.ends[e].item<int64_t>();
    if (end > begin) {
      out[e].copy_(group_values(call.a, call.scale_a, begin, end)
                       .matmul(group_values(b, call.scale_b, begin, end).t()));
    }
    begin = end;
  }
  return out;
}

TEST(BlockScaledGemm, ArgumentsStandForTheOperandsOfTheRecipe) {
  uint64_t seed = 0;
  for (const char* name : {"mxfp8_rceil", "mxfp8_floor", "mxfp8_rceil_wgrad_with_hp"}) {
    SCOPED_TRACE(name);
    const Config config = recipe(name);
    for (const Sizes& sizes : all_sizes()) {
      for (const Gemm gemm : kGemms) {
        const GemmFormats formats = formats_of(config, gemm);
        if (!std::holds_alternative<MxFormat>(formats.right)) continue;
        const GemmProblem problem = make_problem(gemm, formats, sizes, seed += 10);
        const BlockScaledCall call = block_scaled_call(problem);
        const at::Tensor padded =
            gemm == Gemm::GRAD_WEIGHT ? multiply_by_columns(call) : multiply_by_rows(call);
        const at::Tensor got = block_scaled_result(problem, call, padded);
        const at::Tensor expected = testing::reference_gemm(problem).to(at::kFloat);
        ASSERT_TRUE(at::allclose(expected, got.to(at::kFloat), 1e-6, 1e-30)) << problem.describe();
      }
    }
  }
}

TEST(BlockScaledGemm, ArgumentsHaveTheShapesThatTheCallChecks) {
  const Sizes sizes{{40, 0, 88}, 5};
  const Config config = recipe("mxfp8_rceil");
  const int64_t P = 640;  // 133 + 3 * 127 = 514, rounded up
  for (const Gemm gemm : kGemms) {
    const BlockScaledCall call =
        block_scaled_call(make_problem(gemm, formats_of(config, gemm), sizes, 1));
    SCOPED_TRACE(to_string(gemm));
    EXPECT_EQ(call.a.scalar_type(), at::kFloat8_e4m3fn);
    EXPECT_EQ(call.b.scalar_type(), at::kFloat8_e4m3fn);
    EXPECT_EQ(call.scale_a.scalar_type(), at::kFloat8_e8m0fnu);
    EXPECT_EQ(call.scale_b.scalar_type(), at::kFloat8_e8m0fnu);
    EXPECT_TRUE(call.a.is_contiguous());
    EXPECT_TRUE(call.b.transpose(-2, -1).is_contiguous());
    EXPECT_EQ(call.tokens.ends.scalar_type(), at::kInt);
    if (gemm == Gemm::GRAD_WEIGHT) {
      EXPECT_EQ(call.a.sizes(), at::IntArrayRef({kN, P}));
      EXPECT_EQ(call.b.sizes(), at::IntArrayRef({P, kK}));
      EXPECT_EQ(call.scale_a.sizes(), at::IntArrayRef({128, P / 32 + int64_t{4} * 3}));
      EXPECT_EQ(call.scale_b.sizes(), at::IntArrayRef({256, P / 32 + int64_t{4} * 3}));
      continue;
    }
    const int64_t contracted = gemm == Gemm::OUT ? kK : kN, columns = gemm == Gemm::OUT ? kN : kK;
    const int64_t blocks = gemm == Gemm::OUT ? 8 : 4;
    EXPECT_EQ(call.a.sizes(), at::IntArrayRef({P, contracted}));
    EXPECT_EQ(call.b.sizes(), at::IntArrayRef({3, contracted, columns}));
    EXPECT_EQ(call.scale_a.sizes(), at::IntArrayRef({P, blocks}));
    EXPECT_EQ(call.scale_b.sizes(), at::IntArrayRef({3, (columns + 127) / 128 * 128 * blocks}));
  }
}

TEST(BlockScaledGemm, PaddedRowsAndTokensFindEachOther) {
  for (const Sizes& sizes : all_sizes()) {
    const auto groups = static_cast<int64_t>(sizes.groups.size());
    const PaddedTokens tokens = pad_tokens(offs_of(sizes.groups), sizes.tokens(), 128,
                                           padded_row_bound(sizes.tokens(), groups, 128));
    const at::Tensor rows = at::arange(sizes.tokens(), at::kLong);
    const at::Tensor there = tokens.position.masked_select(tokens.has_group);
    EXPECT_TRUE(
        at::equal(tokens.source.index_select(0, there), rows.masked_select(tokens.has_group)));
    EXPECT_TRUE(tokens.is_token.index_select(0, there).all().item<bool>());
    EXPECT_EQ(tokens.is_token.sum().item<int64_t>(), sizes.tokens() - sizes.tail);
    EXPECT_EQ(tokens.has_group.sum().item<int64_t>(), sizes.tokens() - sizes.tail);
    EXPECT_EQ(tokens.ends.remainder(128).sum().item<int64_t>(), 0);
  }
}

TEST(BlockScaledGemm, IsRefusedWhereItCannotRun) {
  const Config config = recipe("mxfp8_rceil");
  const GemmProblem problem =
      make_problem(Gemm::OUT, formats_of(config, Gemm::OUT), {{40, 88}, 0}, 1);
  EXPECT_EQ(block_scaled_refusal(problem).value_or(""), "operands are on cpu");
}

}  // namespace
}  // namespace moe8
