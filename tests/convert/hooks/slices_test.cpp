// SPDX-License-Identifier: BSD-3-Clause
// One expert's slice of a 3-D weight in 2-D products, as loops over experts write it: one group by
// the config of the whole weight.
#include "convert/hooks/agree.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::dtypes;
using testing::expect_agreement;
using testing::grouped_configs;
using testing::linear_configs;
using testing::normal;
using testing::one_group;
using testing::Product;
using testing::same_bits;
using testing::Weights;
namespace F = torch::nn::functional;

constexpr int64_t E = 3, T = 5, K = 64, N = 96;

struct Style {
  const char* name;
  std::vector<int64_t> x_shape;
  std::function<Tensor(const Tensor& x, const Tensor& w)> style;  // w [E, N, K]
  std::function<Tensor(const Tensor& w)> slice;                   // [K, N], what x meets
};

void expect_all(const std::vector<Style>& styles) {
  for (const at::ScalarType dtype : dtypes()) {
    for (const Config& config : grouped_configs()) {
      for (const Style& s : styles) {
        expect_agreement(
            s.name, [&](const Tensor& x, const Weights& w) { return s.style(x, w[0]); },
            [&](const Tensor& x, const Weights& w) { return one_group(x, s.slice(w[0]), config); },
            normal(s.x_shape, dtype, 1), {normal({E, N, K}, dtype, 2)}, config);
      }
    }
  }
}

Tensor second(const Tensor& w) {
  return w[1].t();
}

TEST(Slices, EveryProductOfOneExpert) {
  expect_all({
      {"F::linear(x, w[e])",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return F::linear(x, w[1]); },
       second},
      {"at::linear(x, w[e])",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::linear(x, w[1]); },
       second},
      {"at::linear of rank 3",
       {2, T, K},
       [](const Tensor& x, const Tensor& w) { return at::linear(x, w.select(0, 1)); },
       second},
      {"mm", {T, K}, [](const Tensor& x, const Tensor& w) { return at::mm(x, w[1].t()); }, second},
      {"matmul",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return x.matmul(w[1].mT()); },
       second},
      {"matmul of rank 3",
       {2, T, K},
       [](const Tensor& x, const Tensor& w) { return x.matmul(w[1].mT()); },
       second},
      {"unbind",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::mm(x, at::unbind(w)[1].t()); },
       second},
      {"split",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::linear(x, w.split(1)[1].squeeze(0)); },
       second},
      {"a copy of w[e]",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::mm(x, w[1].clone().t()); },
       second},
      {"a contiguous transpose",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::mm(x, w[1].t().contiguous()); },
       second},
      {"gate and up",
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::linear(x, w[1].chunk(2, 0)[1]); },
       [](const Tensor& w) { return w[1].chunk(2, 0)[1].t(); }},
      {"a part of the inputs",
       {T, K / 2},
       [](const Tensor& x, const Tensor& w) { return at::linear(x, w[1].narrow(1, 32, 32)); },
       [](const Tensor& w) { return w[1].narrow(1, 32, 32).t(); }},
      {"all experts as one matrix",
       {T, K},
       [](const Tensor& x, const Tensor& w) {
         return at::linear(x, w.view({E * N, K}));
       },
       [](const Tensor& w) {
         return w.view({E * N, K}).t();
       }},
      {"mm by the other axis",
       {T, N},
       [](const Tensor& x, const Tensor& w) { return at::mm(x, w[1]); },
       [](const Tensor& w) { return w[1]; }},
      {"a vector",
       {K},
       [](const Tensor& x, const Tensor& w) { return at::matmul(x, w[1].t()); },
       second},
  });
}

TEST(Slices, WithABias) {
  for (const at::ScalarType dtype : dtypes()) {
    for (const Config& config : grouped_configs()) {
      const Tensor bias = normal({N}, dtype, 3);
      const auto with_bias = [&](const Tensor& x, const Weights& w) {
        return one_group(x, w[0][1].t(), config) + bias;
      };
      const std::vector<std::pair<const char*, Product>> styles{
          {"addmm",
           [&](const Tensor& x, const Weights& w) { return at::addmm(bias, x, w[0][1].t()); }},
          {"at::linear",
           [&](const Tensor& x, const Weights& w) { return at::linear(x, w[0][1], bias); }},
          {"F::linear",
           [&](const Tensor& x, const Weights& w) { return F::linear(x, w[0][1], bias); }},
      };
      for (const auto& [name, style] : styles) {
        expect_agreement(name, style, with_bias, normal({T, K}, dtype),
                         {normal({E, N, K}, dtype, 2)}, config);
      }
    }
  }
}

TEST(Slices, MatrixTimesVector) {
  for (const Config& config : grouped_configs()) {
    const Tensor bias = normal({N}, at::kBFloat16, 3);
    const auto function = [&](const Tensor& x, const Weights& w) {
      return one_group(x, w[0][1].t(), config);
    };
    const Weights values{normal({E, N, K}, at::kBFloat16, 2)};
    expect_agreement(
        "mv", [](const Tensor& x, const Weights& w) { return at::mv(w[0][1], x); }, function,
        normal({K}), values, config);
    expect_agreement(
        "addmv", [&](const Tensor& x, const Weights& w) { return at::addmv(bias, w[0][1], x); },
        [&](const Tensor& x, const Weights& w) { return function(x, w) + bias; }, normal({K}),
        values, config);
  }
}

TEST(Slices, ALoopOverExpertsUnderAutocast) {
  install_aten_hooks();
  Tensor w = normal({E, N, K}, at::kFloat, 2).requires_grad_();
  set_tag(w, grouped_configs()[0]);
  const Tensor x = normal({T, K}, at::kFloat);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const Tensor y = at::linear(x, w[1]);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  EXPECT_TRUE(same_bits(
      one_group(x.to(at::kBFloat16), w[1].detach().to(at::kBFloat16).t(), grouped_configs()[0]),
      y));
}

TEST(Slices, OneRowOfAWeightAsAVector) {
  for (const Config& config : linear_configs()) {
    expect_agreement(
        "matmul(x, w[0])", [](const Tensor& x, const Weights& w) { return at::matmul(x, w[0][0]); },
        [&](const Tensor& x, const Weights& w) {
          return quantize_then_linear(x, w[0].narrow(0, 0, 1), {}, config).squeeze(-1);
        },
        normal({T, K}), {normal({N, K}, at::kBFloat16, 2)}, config);
  }
}

}  // namespace
}  // namespace moe8
