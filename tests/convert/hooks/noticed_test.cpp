// SPDX-License-Identifier: BSD-3-Clause
// Uses of converted weights that have no meaning in low precision: each computes what LibTorch
// computes, and the backward that reaches the weight names it, with the operation and what to do.
#include "convert/hooks/agree.h"
#include "moe8/quantize_model.h"

namespace moe8 {
namespace {

using at::Tensor;
using ::testing::AllOf;
using testing::error_of;
using testing::expect_equal;
using testing::grouped_configs;
using ::testing::HasSubstr;
using testing::linear_configs;
using testing::normal;

constexpr int64_t E = 3, T = 6, K = 32, N = 64;

struct Model : torch::nn::Module {
  explicit Model(at::IntArrayRef shape)
      : experts(register_parameter("experts", normal(shape, at::kFloat, 1))) {}
  Tensor experts;
};

struct Style {
  const char* name;
  std::vector<int64_t> shape;  // of the weight
  std::vector<int64_t> x_shape;
  std::function<Tensor(const Tensor& x, const Tensor& w)> product;
  std::string said;
};

const std::string kOtherProduct = "only matrix products have low precision";
const std::string kContraction = "contracts over more than the rows";
const std::string kComputed = "tensors computed from it";

const std::vector<Style>& styles() {
  static const std::vector<Style> list{
      {"bilinear",
       {N, K, K},
       {T, K},
       [](const Tensor& x, const Tensor& w) { return at::bilinear(x, x, w, {}); },
       "at::bilinear ran in high precision: " + kOtherProduct},
      {"conv1d",
       {N, K, 3},
       {2, K, 16},
       [](const Tensor& x, const Tensor& w) { return at::conv1d(x, w); },
       "at::convolution ran in high precision: " + kOtherProduct},
      {"conv1d of depth",
       {K, 1, 4},
       {2, K, 16},
       [](const Tensor& x, const Tensor& w) { return at::conv1d(x, w, {}, 1, 3, 1, K); },
       "at::convolution ran in high precision: " + kOtherProduct},
      {"conv_transpose1d",
       {K, N, 3},
       {2, K, 16},
       [](const Tensor& x, const Tensor& w) { return at::conv_transpose1d(x, w); },
       "at::convolution ran in high precision: " + kOtherProduct},
      {"addbmm",
       {E, K, N},
       {E, T, K},
       [](const Tensor& x, const Tensor& w) {
         return at::addbmm(at::zeros({T, N}), x, w);
       },
       "at::addbmm ran in high precision: it contracts over experts"},
      {"einsum te,ekn->tkn",
       {E, K, N},
       {T, E},
       [](const Tensor& x, const Tensor& w) {
         return at::einsum("te,ekn->tkn", {x, w});
       },
       kContraction},
      {"einsum tek,ekn->tn",
       {E, K, N},
       {T, E, K},
       [](const Tensor& x, const Tensor& w) {
         return at::einsum("tek,ekn->tn", {x, w});
       },
       kContraction},
      {"tensordot over experts",
       {E, K, N},
       {T, E, K},
       [](const Tensor& x, const Tensor& w) {
         return at::tensordot(x, w, {1, 2}, {0, 1});
       },
       kContraction},
      {"W + A B, low-rank adaption",
       {E, K, N},
       {E, T, K},
       [](const Tensor& x, const Tensor& w) {
         const Tensor a = normal({E, K, 4}, at::kFloat, 3), b = normal({E, 4, N}, at::kFloat, 4);
         return at::bmm(x, w + at::bmm(a, b));
       },
       kComputed},
      {"W * scale",
       {E, K, N},
       {E, T, K},
       [](const Tensor& x, const Tensor& w) { return at::bmm(x, w * 0.5); },
       kComputed},
      {"a row at a time",
       {E, K, N},
       {K},
       [](const Tensor& x, const Tensor& w) { return at::dot(w[0].select(1, 0), x); },
       kComputed},
  };
  return list;
}

TEST(Noticed, ByTheBackwardAsAnError) {
  for (const Style& style : styles()) {
    SCOPED_TRACE(style.name);
    Model model(style.shape);
    quantize_(model, {{"experts", grouped_configs()[0]}}, {.unused = Unused::ERROR});
    const Tensor y = style.product(normal(style.x_shape, at::kFloat), model.experts);
    const std::string shape = [&] {
      std::vector<std::string> sizes;
      for (const int64_t size : style.shape) sizes.push_back(std::to_string(size));
      return "experts (" + sizes[0] + ", " + sizes[1] + ", " + sizes[2] + ")";
    }();
    EXPECT_THAT(error_of([&] { y.sum().backward(); }),
                AllOf(HasSubstr("[quantize_] unused: "), HasSubstr(shape), HasSubstr(style.said)));
    EXPECT_EQ(check_conversion(model).complaints().size(), 1u);
  }
}

TEST(Noticed, AndTheResultIsLibTorchs) {
  for (const Style& style : styles()) {
    SCOPED_TRACE(style.name);
    const Tensor x = normal(style.x_shape, at::kFloat);
    const auto results = [&](bool is_converted) {
      Model model(style.shape);
      if (is_converted) {
        quantize_(model, {{"experts", grouped_configs()[0]}}, {.unused = Unused::IGNORE});
      }
      const Tensor y = style.product(x, model.experts);
      y.sum().backward();
      return std::vector<Tensor>{y.detach(), model.experts.grad()};
    };
    expect_equal(results(false), results(true));
  }
}

TEST(Noticed, WithoutABackwardTheProductItselfWarns) {
  for (const Style& style : styles()) {
    if (style.said == kComputed) continue;  // no product of the weight
    SCOPED_TRACE(style.name);
    for (const bool inference : {false, true}) {
      Model model(style.shape);
      quantize_(model, {{"experts", grouped_configs()[0]}});
      const c10::InferenceMode mode(inference);
      const at::NoGradGuard no_grad;
      ::testing::internal::CaptureStderr();
      style.product(normal(style.x_shape, at::kFloat), model.experts);
      EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                  AllOf(HasSubstr("[quantize_] experts: "), HasSubstr(style.said)))
          << inference;
    }
  }
}

// The cells of LibTorch's LSTM are linear products on some devices and an operation of its own on
// others. Either way a program is not left alone with it.
TEST(Noticed, WeightsOfRecurrentLayers) {
  struct Cells : torch::nn::Module {
    Tensor input{register_parameter("input", normal({4 * N, K}, at::kFloat, 1))};
    Tensor hidden{register_parameter("hidden", normal({4 * N, N}, at::kFloat, 2))};
  } model;
  quantize_(model, {{"input", linear_configs()[0]}, {"hidden", linear_configs()[0]}},
            {.unused = Unused::IGNORE});
  const Tensor zero = at::zeros({1, 2, N});
  const auto [y, h, c] = at::lstm(normal({T, 2, K}, at::kFloat), {zero, zero},
                                  {model.input, model.hidden}, /*has_biases=*/false, 1, 0,
                                  /*train=*/true, /*bidirectional=*/false, /*batch_first=*/false);
  const std::string error = error_of([&, y = y] { y.sum().backward(); });
  EXPECT_EQ(error, "(no error)");
  for (const WeightUse& weight : check_conversion(model).weights) {
    EXPECT_TRUE(weight.use == Use::LOW_PRECISION || !weight.remedy.empty()) << weight.fqn;
  }
}

}  // namespace
}  // namespace moe8
