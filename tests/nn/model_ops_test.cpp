// SPDX-License-Identifier: BSD-3-Clause
// The operations of moe8/model_ops.h on a CPU: bit for bit the compositions that they stand for,
// gradients against float64, halves against neighbours, chunks against the whole, misuse.
#include "moe8/model_ops.h"

#include <torch/torch.h>

#include "moe8/moe8.h"
#include "moe8/transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::same_bits;
using testing::sqnr_db;
using torch::autograd::grad;
using torch::autograd::variable_list;

constexpr at::ScalarType kDtypes[] = {at::kBFloat16, at::kFloat};

at::Tensor random(at::IntArrayRef sizes, at::ScalarType dtype, double spread = 1) {
  return (at::randn(sizes) * spread).to(dtype).requires_grad_();
}
at::Tensor in_float64(const at::Tensor& x) {
  return x.detach().to(at::kDouble).requires_grad_();
}

// ---- rotary -------------------------------------------------------------------
// Pairs as complex numbers, in LibTorch.
at::Tensor complex_rotation(const at::Tensor& x, const at::Tensor& freqs) {
  const at::Tensor pairs = x.to(at::kFloat).view({x.size(0), x.size(1), x.size(2), -1, 2});
  const at::Tensor rotated = at::view_as_complex(pairs) * freqs.unsqueeze(1);
  return at::view_as_real(rotated).flatten(3).to(x.scalar_type());
}

// Bit for bit where heads fill LibTorch's vectors; in what is left over it fuses a product and sum.
TEST(Rotary, IsAMultiplicationOfComplexNumbers) {
  torch::manual_seed(1);
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t width : {2, 6, 8, 10, 22, 32, 64, 128}) {
      SCOPED_TRACE(c10::str(dtype, " ", width));
      const auto expect_same = [&](const at::Tensor& expected, const at::Tensor& got) {
        if (width % 32 == 0) {
          EXPECT_TRUE(same_bits(expected.detach(), got.detach()));
        }
        EXPECT_GT(sqnr_db(expected, got), dtype == at::kFloat ? 135 : 70);
      };
      const at::Tensor q = random({2, 7, 3, width}, dtype, 3), k = random({2, 7, 1, width}, dtype);
      const at::Tensor freqs = rotary_frequencies(width, 9, 10000.0);
      const RotatedHeads got = rotary_embedding(q, k, freqs);
      const at::Tensor angles = freqs.narrow(0, 0, 7);
      const at::Tensor q_out = complex_rotation(q, angles), k_out = complex_rotation(k, angles);
      expect_same(q_out, got.q);
      expect_same(k_out, got.k);
      const variable_list upstream{at::randn_like(q), at::randn_like(k)};
      const variable_list expected = grad({q_out, k_out}, {q, k}, upstream);
      const variable_list grads = grad({got.q, got.k}, {q, k}, upstream);
      for (size_t i = 0; i < 2; ++i) expect_same(expected[i], grads[i]);
    }
  }
}

TEST(Rotary, HalvesAreNeighboursInAnotherOrder) {
  torch::manual_seed(2);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const at::Tensor q = random({2, 5, 4, 24}, dtype), k = random({2, 5, 2, 24}, dtype);
    const at::Tensor freqs = rotary_frequencies(24, 5, 10000.0);
    const auto interleaved = [](const at::Tensor& x) {  // feature j + D/2 becomes 2 j + 1
      return x.unflatten(3, {2, -1}).transpose(3, 4).flatten(3);
    };
    const RotatedHeads expected = rotary_embedding(interleaved(q), interleaved(k), freqs);
    const RotatedHeads got = rotary_embedding(q, k, freqs, RotaryPairs::HALVES);
    EXPECT_TRUE(same_bits(expected.q.detach(), interleaved(got.q).detach())) << dtype;
    EXPECT_TRUE(same_bits(expected.k.detach(), interleaved(got.k).detach())) << dtype;
    const at::Tensor upstream = at::randn_like(q);
    EXPECT_TRUE(same_bits(grad({interleaved(got.q)}, {q}, {upstream})[0],
                          grad({expected.q}, {q}, {upstream})[0]))
        << dtype;
  }
}

TEST(Rotary, BackwardIsTheRotationBack) {
  torch::manual_seed(3);
  for (const RotaryPairs pairs : {RotaryPairs::NEIGHBOURS, RotaryPairs::HALVES}) {
    const at::Tensor q = random({1, 6, 2, 16}, at::kFloat), k = random({1, 6, 2, 16}, at::kFloat);
    const at::Tensor freqs = rotary_frequencies(16, 6, 100.0);
    const RotatedHeads out = rotary_embedding(q, k, freqs, pairs);
    EXPECT_GT(sqnr_db(q, grad({out.q}, {q}, {out.q.detach()})[0]), 130);  // k takes no part
    EXPECT_EQ(error_of([&] {
                const variable_list back =
                    grad({rotary_embedding(q, k, freqs, pairs).q}, {q}, {at::ones_like(q)},
                         std::nullopt, /*create_graph=*/true);
                back[0].sum().backward();
              }),
              "moe8: rotary_embedding cannot be differentiated twice (create_graph=true).");
  }
}

TEST(Rotary, StridesOfItsInputsDoNotMatter) {
  torch::manual_seed(4);
  const at::Tensor together = at::randn({2, 3, 5, 8, 2});
  const at::Tensor q = together.select(4, 0), k = together.select(4, 1).transpose(1, 2);
  const at::Tensor freqs = rotary_frequencies(8, 5, 10000.0);
  const at::Tensor heads = at::randn({2, 3, 5, 8}).transpose(1, 2);
  const RotatedHeads got = rotary_embedding(heads, k, freqs);
  const RotatedHeads expected = rotary_embedding(heads.contiguous(), k.contiguous(), freqs);
  EXPECT_TRUE(same_bits(expected.q, got.q));
  EXPECT_TRUE(same_bits(expected.k, got.k));
  EXPECT_EQ(rotary_embedding(at::zeros({0, 5, 2, 8}), at::zeros({0, 5, 0, 8}), freqs).q.numel(), 0);
}

TEST(Rotary, RefusesWhatCannotBe) {
  const at::Tensor q = at::zeros({2, 5, 4, 8}), freqs = rotary_frequencies(8, 4, 10000.0);
  const auto message = [&](const at::Tensor& a, const at::Tensor& b) {
    return error_of([&] { rotary_embedding(a, b, freqs); });
  };
  EXPECT_EQ(message(q, q),
            "[rotary_embedding] freqs: expected complex64 [at least 5, 4] on cpu, got "
            "ComplexFloat [4, 4] on cpu");
  EXPECT_EQ(message(q.select(0, 0), q),
            "[rotary_embedding] q: expected a floating [B, S, H, D], got Float [5, 4, 8]");
  EXPECT_EQ(message(q.narrow(3, 0, 7), q),
            "[rotary_embedding] q: expected an even number of features per head, got [2, 5, 4, 7]");
  EXPECT_EQ(message(q, q.narrow(1, 0, 3)),
            "[rotary_embedding] k: expected q's batch, positions, features, dtype and device "
            "(Float [2, 5, 4, 8] on cpu), got Float [2, 3, 4, 8] on cpu");
}

// ---- norms --------------------------------------------------------------------
TEST(RmsNorm, IsLibTorchsBitForBit) {
  torch::manual_seed(5);
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor x = random({3, 7, 40}, dtype, 2), w = random({40}, dtype);
    const at::Tensor upstream = at::randn_like(x);
    const at::Tensor expected = at::rms_norm(x, {40}, w, 1e-5), got = rms_norm(x, w, 1e-5);
    EXPECT_TRUE(same_bits(expected.detach(), got.detach()));
    const variable_list a = grad({expected}, {x, w}, {upstream});
    const variable_list b = grad({got}, {x, w}, {upstream});
    for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << i;
  }
}

TEST(RmsNorm, OfASumIsASumAndItsNorm) {
  torch::manual_seed(6);
  for (const at::ScalarType dtype : kDtypes) {
    for (const bool has_y : {true, false}) {
      const at::Tensor x = random({5, 24}, dtype),
                       y = has_y ? random({5, 24}, dtype) : at::Tensor();
      const at::Tensor w = random({24}, dtype);
      const NormedSum got = add_rms_norm(x, y, w, 1e-6);
      const at::Tensor sum = has_y ? x + y : x;
      const at::Tensor normed = at::rms_norm(sum, {24}, w, 1e-6);
      EXPECT_TRUE(same_bits(sum.detach(), got.sum.detach()));
      EXPECT_TRUE(same_bits(normed.detach(), got.normed.detach()));
      const at::Tensor expected_out = sum * 2 + normed, out = got.sum * 2 + got.normed;
      variable_list inputs{x, w};
      if (has_y) inputs.push_back(y);
      const at::Tensor upstream = at::randn_like(x);
      const variable_list a = grad({expected_out}, inputs, {upstream});
      const variable_list b = grad({out}, inputs, {upstream});
      for (size_t i = 0; i < inputs.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << i;
    }
  }
}

TEST(RmsNorm, RefusesWhatCannotBe) {
  const at::Tensor x = at::zeros({2, 8}), w = at::zeros({8});
  EXPECT_EQ(error_of([&] { rms_norm(x, at::zeros({7}), 1e-5); }),
            "[rms_norm] weight: expected Float [8] on cpu, got Float [7] on cpu");
  EXPECT_EQ(error_of([&] {
              rms_norm(at::zeros({2, 0}), at::zeros({0}), 1e-5);
            }),
            "[rms_norm] x: expected a floating [..., D] with D > 0, got Float [2, 0]");
  EXPECT_EQ(error_of([&] {
              add_rms_norm(x, at::zeros({1, 8}), w, 1e-5);
            }),
            "[add_rms_norm] y: expected Float [2, 8] on cpu as x, got Float [1, 8] on cpu");
}

// ---- gate ---------------------------------------------------------------------
TEST(Swiglu, IsItsCompositionBitForBit) {
  torch::manual_seed(7);
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor g = random({6, 20}, dtype, 3), u = random({6, 20}, dtype);
    const at::Tensor expected = at::silu(g) * u, got = swiglu(g, u);
    EXPECT_TRUE(same_bits(expected.detach(), got.detach()));
    const at::Tensor upstream = at::randn_like(g);
    const variable_list a = grad({expected}, {g, u}, {upstream});
    const variable_list b = grad({got}, {g, u}, {upstream});
    for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << i;
  }
  EXPECT_EQ(error_of([] { swiglu(at::zeros({2}), at::zeros({3})); }),
            "[swiglu] up: expected gate's floating dtype, shape and device (Float [2] on cpu), got "
            "Float [3] on cpu");
}

// ---- loss ---------------------------------------------------------------------
at::Tensor libtorch_loss(const at::Tensor& logits, const at::Tensor& targets) {
  return torch::nn::functional::cross_entropy(logits.to(at::kFloat).flatten(0, -2),
                                              targets.flatten());
}

TEST(CrossEntropy, IsLibTorchsOnFloat32LogitsBitForBit) {
  torch::manual_seed(8);
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor logits = random({3, 11, 50}, dtype, 3);
    at::Tensor targets = at::randint(50, {3, 11}, at::kLong);
    targets[1].fill_(-100);
    const at::Tensor expected = libtorch_loss(logits, targets);
    for (const bool overwrites : {false, true}) {
      const at::Tensor got = cross_entropy(logits * 1, targets, {.overwrite_logits = overwrites});
      EXPECT_EQ(got.scalar_type(), at::kFloat);
      EXPECT_TRUE(same_bits(expected.detach(), got.detach()));
      EXPECT_TRUE(
          same_bits(grad({libtorch_loss(logits, targets)}, {logits})[0], grad({got}, {logits})[0]));
    }
  }
}

TEST(CrossEntropy, RowsThatTakeNoPart) {
  const at::Tensor logits = random({4, 9}, at::kFloat);
  const at::Tensor targets = at::tensor({7, 3, 3, 0}, at::kLong);
  const at::Tensor loss = cross_entropy(logits, targets, {.ignore_index = 3});
  const at::Tensor part = logits.detach().index_select(0, at::tensor({0, 3}, at::kLong));
  EXPECT_TRUE(same_bits(libtorch_loss(part, at::tensor({7, 0}, at::kLong)), loss.detach()));
  const at::Tensor of_logits = grad({loss}, {logits})[0];
  EXPECT_EQ(of_logits.narrow(0, 1, 2).abs().max().item<float>(), 0);
  EXPECT_TRUE(at::isnan(cross_entropy(logits, at::full({4}, -100, at::kLong))).item<bool>());
}

TEST(CrossEntropy, RefusesWhatCannotBe) {
  const at::Tensor logits = at::zeros({4, 9});
  const at::Tensor targets = at::zeros({4}, at::kLong);
  EXPECT_EQ(error_of([&] { cross_entropy(logits, targets.to(at::kInt)); }),
            "[cross_entropy] targets: expected int64 [4] on cpu, got Int [4] on cpu");
  EXPECT_EQ(error_of([&] { cross_entropy(logits, at::zeros({3}, at::kLong)); }),
            "[cross_entropy] targets: expected int64 [4] on cpu, got Long [3] on cpu");
  EXPECT_EQ(error_of([&] {
              cross_entropy(at::zeros({4, 0}), targets);
            }),
            "[cross_entropy] logits: expected a floating [..., V] with V > 0, got Float [4, 0]");
  EXPECT_THAT(error_of([&] { cross_entropy(logits, targets + 9); }),
              ::testing::HasSubstr("Target 9 is out of bounds"));
  EXPECT_EQ(error_of([&] {
              linear_cross_entropy(logits, at::zeros({5, 8}), targets);
            }),
            "[linear_cross_entropy] weight: expected [V, 9] with V > 0, got [5, 8]");
  EXPECT_EQ(error_of([&] {
              linear_cross_entropy(logits, at::zeros({5, 9}), targets, {.rows_per_chunk = -1});
            }),
            "[linear_cross_entropy] rows_per_chunk: expected 0 or more, got -1");
}

TEST(LinearCrossEntropy, IsLinearThenCrossEntropy) {
  torch::manual_seed(9);
  const at::Tensor x = random({3, 10, 16}, at::kFloat), w = random({40, 16}, at::kFloat);
  const at::Tensor targets = at::randint(40, {3, 10}, at::kLong);
  const at::Tensor expected = libtorch_loss(at::linear(x, w), targets);
  const at::Tensor got = linear_cross_entropy(x, w, targets);
  EXPECT_TRUE(same_bits(expected.detach(), got.detach()));
  const variable_list a = grad({expected}, {x, w}), b = grad({got}, {x, w});
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << i;
}

TEST(LinearCrossEntropy, ChunksGiveTheSameGradients) {
  torch::manual_seed(10);
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor x = random({3, 10, 16}, dtype), w = random({40, 16}, dtype);
    at::Tensor targets = at::randint(40, {3, 10}, at::kLong);
    targets[0].fill_(-100);  // whole chunks of rows that take no part
    const at::Tensor wide_x = in_float64(x), wide_w = in_float64(w);
    const at::Tensor exact =
        at::cross_entropy_loss(at::linear(wide_x, wide_w).flatten(0, 1), targets.flatten());
    const variable_list expected = grad({exact * 3}, {wide_x, wide_w});
    const double bar = dtype == at::kFloat ? 115 : 40;
    for (const int64_t rows : {1, 4, 7, 29, 30, 1000}) {
      const at::Tensor loss = linear_cross_entropy(x, w, targets, {.rows_per_chunk = rows});
      EXPECT_NEAR(loss.item<double>(), exact.item<double>(), dtype == at::kFloat ? 1e-5 : 2e-2);
      const variable_list got = grad({loss * 3}, {x, w});
      for (size_t i = 0; i < 2; ++i) EXPECT_GT(sqnr_db(expected[i], got[i]), bar) << rows << i;
      const at::Tensor frozen = w.detach();
      const variable_list of_x =
          grad({linear_cross_entropy(x, frozen, targets, {.rows_per_chunk = rows}) * 3}, {x});
      EXPECT_TRUE(same_bits(got[0], of_x[0]));
    }
    const torch::NoGradGuard no_grad;
    EXPECT_FALSE(linear_cross_entropy(x, w, targets, {.rows_per_chunk = 4}).requires_grad());
  }
}

// The product of every chunk is one of the converted weight.
TEST(LinearCrossEntropy, ConvertedWeightsMultiplyInTheirRecipe) {
  torch::manual_seed(11);
  torch::nn::Linear output(torch::nn::LinearOptions(64, 96).bias(false));
  output->to(at::kBFloat16);
  const at::Tensor x = random({64, 64}, at::kBFloat16);
  const at::Tensor targets = at::randint(96, {64}, at::kLong);
  const at::Tensor plain = linear_cross_entropy(x, output->weight, targets, {.rows_per_chunk = 32});
  quantize_(*output, {{"weight", MXLinearConfig{}}});
  const at::Tensor whole = linear_cross_entropy(x, output->weight, targets);
  const at::Tensor chunks =
      linear_cross_entropy(x, output->weight, targets, {.rows_per_chunk = 32});
  EXPECT_NEAR(whole.item<float>(), chunks.item<float>(), 1e-6);
  EXPECT_NE(plain.item<float>(), chunks.item<float>());
  chunks.backward();
  const at::Tensor of_chunks = output->weight.grad().clone();
  output->zero_grad();
  whole.backward();
  EXPECT_GT(sqnr_db(output->weight.grad(), of_chunks), 25);
  EXPECT_EQ(check_conversion(*output).to_line(), "");
}

}  // namespace
}  // namespace moe8
