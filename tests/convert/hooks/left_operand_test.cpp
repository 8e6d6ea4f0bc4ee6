// SPDX-License-Identifier: BSD-3-Clause
// Converted weights as the left operand, with vectors, and in operations that end in matrix
// products; and that forward and backward of one
// product are in the same precision.
#include "convert/hooks/agree.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::dtypes;
using testing::error_of;
using testing::expect_agreement;
using testing::expect_equal;
using testing::grouped_configs;
using testing::linear_configs;
using testing::normal;
using testing::offs_of;
using testing::Weights;

constexpr int64_t T = 5, K = 64, N = 96;

struct Style {
  const char* name;
  std::vector<int64_t> x_shape;
  std::function<Tensor(const Tensor& x, const Tensor& w)> style;  // w [N, K]
  std::function<Tensor(const Tensor& x, const Tensor& w, const Config& config)> function;
};

TEST(LeftOperand, IsTheTransposedProduct) {
  const auto transposed = [](const Tensor& x, const Tensor& w, const Config& c) {
    return quantize_then_linear(x.mT(), w, {}, c).mT();
  };
  const auto as_linear = [](const Tensor& x, const Tensor& w, const Config& c) {
    return quantize_then_linear(x, w, {}, c);
  };
  const std::vector<Style> styles{
      {"mm(w, x)",
       {K, T},
       [](const Tensor& x, const Tensor& w) { return at::mm(w, x); },
       transposed},
      {"w.mm(x.t())",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return w.mm(x.t()); },
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return quantize_then_linear(x, w, {}, c).t();
       }},
      {"matmul(w, x)",
       {K, T},
       [](const Tensor& x, const Tensor& w) { return at::matmul(w, x); },
       transposed},
      {"matmul(w, x) of rank 3",
       {2, K, T},
       [](const Tensor& x, const Tensor& w) { return at::matmul(w, x); },
       transposed},
      {"mm(w^T, x)",
       {N, T},
       [](const Tensor& x, const Tensor& w) { return at::mm(w.t(), x); },
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return quantize_then_linear(x.t(), w.t(), {}, c).t();
       }},
      {"mv", {K}, [](const Tensor& x, const Tensor& w) { return at::mv(w, x); }, as_linear},
      {"matmul(w, vector)",
       {K},
       [](const Tensor& x, const Tensor& w) { return at::matmul(w, x); },
       as_linear},
      {"matmul(vector, w^T)",
       {K},
       [](const Tensor& x, const Tensor& w) { return at::matmul(x, w.t()); },
       as_linear},
      {"tensordot",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::tensordot(x, w, {1}, {1}); },
       as_linear},
      {"inner",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::inner(x, w); },
       as_linear},
      {"multi_dot",
       {T, K},
       [](const Tensor& x, const Tensor& w) {
         return at::linalg_multi_dot({x, w.t()});
       },
       as_linear},
      {"einsum nk,tk->tn",
       {T, K},
       [](const Tensor& x, const Tensor& w) {
         return at::einsum("nk,tk->tn", {w, x});
       },
       as_linear},
  };
  for (const at::ScalarType dtype : dtypes()) {
    for (const Config& config : linear_configs()) {
      for (const Style& s : styles) {
        expect_agreement(
            s.name, [&](const Tensor& x, const Weights& w) { return s.style(x, w[0]); },
            [&](const Tensor& x, const Weights& w) { return s.function(x, w[0], config); },
            normal(s.x_shape, dtype, 1), {normal({N, K}, dtype, 2)}, config);
      }
    }
  }
}

TEST(LeftOperand, WithSummands) {
  for (const Config& config : linear_configs()) {
    const Tensor full = normal({N, T}, at::kFloat, 3), bias = normal({N}, at::kFloat, 4);
    const Weights values{normal({N, K}, at::kFloat, 2)};
    expect_agreement(
        "addmm", [&](const Tensor& x, const Weights& w) { return at::addmm(full, w[0], x, 2, 3); },
        [&](const Tensor& x, const Weights& w) {
          return quantize_then_linear(x.t(), w[0], {}, config).t() * 3 + full * 2;
        },
        normal({K, T}, at::kFloat), values, config);
    expect_agreement(
        "addmv", [&](const Tensor& x, const Weights& w) { return at::addmv(bias, w[0], x, 2, 3); },
        [&](const Tensor& x, const Weights& w) {
          return quantize_then_linear(x, w[0], {}, config) * 3 + bias * 2;
        },
        normal({K}, at::kFloat), values, config);
  }
}

TEST(LeftOperand, GroupedByOffs) {
  for (const Config& config : grouped_configs()) {
    const Tensor offs = offs_of({2, 0, 6});
    expect_agreement(
        "_grouped_mm(w, x, offs)",
        [&](const Tensor& x, const Weights& w) { return at::_grouped_mm(w[0], x, offs); },
        [&](const Tensor& x, const Weights& w) {
          return quantize_then_scaled_grouped_mm(x.t(), w[0].transpose(1, 2), offs, config).t();
        },
        normal({K, 8}), {normal({3, N, K}, at::kBFloat16, 2)}, config);
  }
}

TEST(LeftOperand, TwoConvertedWeights) {
  // The right one is the weight, the left one its input.
  const Config config = linear_configs()[0];
  expect_agreement(
      "mm(a, b)", [](const Tensor& x, const Weights& w) { return at::mm(w[0], w[1].t()) * x; },
      [&](const Tensor& x, const Weights& w) {
        return quantize_then_linear(w[0], w[1], {}, config) * x;
      },
      normal({1}), {normal({T, K}, at::kBFloat16, 2), normal({N, K}, at::kBFloat16, 3)}, config);
}

// ---- forward and backward agree ---------------------------------------------------
// The gradients of x and w of a product that LibTorch computed in its forward.
std::vector<Tensor> plain_gradients(const Tensor& x, const Tensor& w) {
  const WithoutAtenHooks without;
  return torch::autograd::grad({at::mm(x, w.t()).square().sum()}, {x, w});
}

TEST(Backward, OfAProductThatWasPlainIsPlain) {
  install_aten_hooks();
  const Tensor x = normal({T, K}, at::kFloat).requires_grad_();
  Tensor w = normal({N, K}, at::kFloat, 2).requires_grad_();
  const std::vector<Tensor> expected = plain_gradients(x, w);
  // Converted between forward and backward: autograd multiplies by the saved weight.
  const Tensor y = at::mm(x, w.t()).square().sum();
  set_tag(w, linear_configs()[0]);
  expect_equal(expected, torch::autograd::grad({y}, {x, w}));
  // Without hooks in forward alone.
  const Tensor z = [&] {
    const WithoutAtenHooks without;
    return at::mm(x, w.t()).square().sum();
  }();
  expect_equal(expected, torch::autograd::grad({z}, {x, w}, {}, /*retain_graph=*/true));
  expect_equal(expected, torch::autograd::grad({z}, {x, w}, {}, true, /*create_graph=*/true));
}

TEST(Backward, OfAProductWithoutMeaningIsPlain) {
  install_aten_hooks();
  Tensor w = normal({3, K, N}, at::kFloat, 2).requires_grad_();
  set_tag(w, grouped_configs()[0]);
  const Tensor x = normal({T, 3}, at::kFloat).requires_grad_();
  const auto gradients = [&] {
    return torch::autograd::grad({at::einsum("te,ekn->tkn", {x, w}).square().sum()}, {x, w});
  };
  const std::vector<Tensor> got = gradients();
  const WithoutAtenHooks without;
  expect_equal(gradients(), got);
}

// A forward that is computed again in backward, as activation checkpointing does.
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& w) {
    ctx->save_for_backward({x, w});
    return at::mm(x, w.t());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::AutoGradMode grad_mode(true);
    const Tensor x = saved[0].detach().requires_grad_();
    const Tensor y = at::mm(x, saved[1].t());
    return torch::autograd::grad({y}, {x, saved[1]}, {grads[0]});
  }
};

TEST(Backward, ACheckpointedForwardIsConverted) {
  const Config config = linear_configs()[0];
  expect_agreement(
      "checkpoint", [](const Tensor& x, const Weights& w) { return Checkpoint::apply(x, w[0]); },
      [&](const Tensor& x, const Weights& w) { return quantize_then_linear(x, w[0], {}, config); },
      normal({T, K}), {normal({N, K}, at::kBFloat16, 2)}, config);
}

TEST(Backward, KeepsItsGraphWhenAsked) {
  install_aten_hooks();
  Tensor w = normal({3, K, N}, at::kFloat, 2).requires_grad_();
  set_tag(w, grouped_configs()[0]);
  const Tensor x = normal({3, T, K}, at::kFloat).requires_grad_();
  const Tensor y = at::bmm(x, w).square().sum();
  const auto once = torch::autograd::grad({y}, {x, w}, {}, /*retain_graph=*/true);
  expect_equal(once, torch::autograd::grad({y}, {x, w}));
  const auto twice = torch::autograd::grad({at::bmm(x, w).square().sum()}, {x}, {}, true, true);
  EXPECT_THAT(error_of([&] { twice[0].sum().backward(); }), ::testing::HasSubstr("twice"));
}

}  // namespace
}  // namespace moe8
