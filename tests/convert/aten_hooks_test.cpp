// SPDX-License-Identifier: BSD-3-Clause
// What LibTorch's operations do with converted and with plain tensors. The oracle of a converted
// product is the function of moe8/linear.h or moe8/grouped_mm.h itself, bit for bit.
#include "convert/aten_hooks.h"

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "moe8/quantize_model.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::error_of;
using ::testing::HasSubstr;
using testing::offs_of;
using testing::same_bits;
using testing::wide_normal;
using torch::nn::Linear;
using torch::nn::LinearOptions;

const Config kLinear = recipe("mxfp8_emulated");
const Config kExperts = recipe("mxfp8_rceil");
constexpr int64_t kIn = 64;
constexpr int64_t kOut = 96;

Tensor normal(at::IntArrayRef shape, at::ScalarType dtype = at::kBFloat16, uint64_t seed = 1) {
  return wide_normal(shape, dtype, seed, 1);
}

// A 2-D weight [N, K], converted.
Tensor linear_weight(at::ScalarType dtype = at::kBFloat16, bool requires_grad = true) {
  install_aten_hooks();
  Tensor weight = normal({kOut, kIn}, dtype, 7).requires_grad_(requires_grad);
  set_tag(weight, kLinear);
  return weight;
}

// A 3-D weight [E, N, K], converted.
Tensor expert_weight(at::ScalarType dtype = at::kBFloat16) {
  install_aten_hooks();
  Tensor weight = normal({3, kOut, kIn}, dtype, 8).requires_grad_();
  set_tag(weight, kExperts);
  return weight;
}

Tensor oracle(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias = {}) {
  return quantize_then_linear(x, weight.detach(), bias, kLinear);
}

std::string grad_fn_of(const Tensor& tensor) {
  const auto& grad_fn = tensor.grad_fn();
  return grad_fn ? grad_fn->name() : "(none)";
}

// ---- products with a converted weight ---------------------------------------
TEST(AtenHooks, EveryProductOfAConvertedLinearWeight) {
  const Tensor w = linear_weight();
  const Tensor bias = normal({kOut}, at::kBFloat16, 3);
  const Tensor x = normal({5, kIn});
  const Tensor expected = oracle(x, w);
  const Tensor with_bias = oracle(x, w, bias);
  EXPECT_TRUE(same_bits(expected, at::mm(x, w.t())));
  EXPECT_TRUE(same_bits(expected, at::matmul(x, w.t())));
  EXPECT_TRUE(same_bits(expected, at::matmul(x, w.transpose(0, 1))));
  EXPECT_TRUE(same_bits(expected, at::linear(x, w)));
  EXPECT_TRUE(same_bits(with_bias, at::linear(x, w, bias)));
  EXPECT_TRUE(same_bits(with_bias, at::addmm(bias, x, w.t())));
  EXPECT_TRUE(same_bits(with_bias, torch::nn::functional::linear(x, w, bias)));
}

TEST(AtenHooks, ConvertedProductsDifferFromHighPrecision) {
  const Tensor w = linear_weight(at::kFloat);
  const Tensor x = normal({5, kIn}, at::kFloat);
  const Tensor low = at::mm(x, w.t());
  const WithoutAtenHooks without;
  EXPECT_FALSE(at::equal(low, at::mm(x, w.t())));
  EXPECT_GT(testing::sqnr_db(at::mm(x, w.t()), low), 20);
}

TEST(AtenHooks, MmComputesItsOwnMathematics) {
  // mm(A, W) is A W, not the A W^T of a linear layer: W here is [K, N] = [96, 64].
  const Tensor w = linear_weight();
  const Tensor a = normal({5, kOut});
  EXPECT_TRUE(same_bits(oracle(a, w.t()), at::mm(a, w)));
  EXPECT_TRUE(same_bits(oracle(a, w.t()), at::matmul(a, w)));
  // Even of a square weight, where the mistake would go unnoticed.
  Tensor square = normal({kIn, kIn});
  set_tag(square, kLinear);
  EXPECT_TRUE(
      same_bits(oracle(a.narrow(1, 0, kIn), square.t()), at::mm(a.narrow(1, 0, kIn), square)));
}

TEST(AtenHooks, AddmmScalesAndBroadcasts) {
  const Tensor w = linear_weight(at::kFloat);
  const Tensor x = normal({5, kIn}, at::kFloat);
  const Tensor product = oracle(x, w);
  const Tensor bias = normal({kOut}, at::kFloat, 3);
  EXPECT_TRUE(
      same_bits(product * 2 + bias.expand_as(product) * 0.5, at::addmm(bias, x, w.t(), 0.5, 2)));
  const Tensor full = normal({5, kOut}, at::kFloat, 4);
  EXPECT_TRUE(same_bits(product + full, at::addmm(full, x, w.t())));
  const Tensor one = normal({1}, at::kFloat, 5);
  EXPECT_TRUE(same_bits(product + one, at::addmm(one, x, w.t())));
  // beta = 0 ignores self, NaN included.
  EXPECT_TRUE(same_bits(product, at::addmm(at::full({kOut}, NAN), x, w.t(), 0)));
  EXPECT_THAT(error_of([&] { at::addmm(full.to(at::kBFloat16), x, w.t(), 2); }),
              HasSubstr("[addmm] self: expected Float"));
  EXPECT_NE(error_of([&] { at::addmm(normal({4, kOut}, at::kFloat), x, w.t()); }), "(no error)");
}

TEST(AtenHooks, InputsOfAnyRank) {
  const Tensor w = linear_weight();
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {kIn}, {1, kIn}, {0, kIn}, {2, 3, kIn}, {2, 0, kIn}, {2, 2, 2, kIn}}) {
    const Tensor x = normal(shape);
    EXPECT_TRUE(same_bits(oracle(x, w), at::matmul(x, w.t()))) << shape;
    EXPECT_TRUE(same_bits(oracle(x, w), at::linear(x, w))) << shape;
  }
}

TEST(AtenHooks, FrozenWeightWithNonContiguousInput) {
  // LibTorch's matmul would turn this into bmm with an expanded weight.
  const Tensor w = linear_weight(at::kBFloat16, /*requires_grad=*/false);
  const Tensor x = normal({3, kIn, 4}).transpose(1, 2).requires_grad_();
  const Tensor y = torch::nn::functional::linear(x, w);
  EXPECT_TRUE(same_bits(oracle(x, w), y));
  y.sum().backward();
  EXPECT_TRUE(x.grad().defined());
}

TEST(AtenHooks, LinearModulesTrainAsTheOperation) {
  for (const bool bias : {false, true}) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{6, kIn}, {2, 3, kIn}}) {
      Linear linear(LinearOptions(kIn, kOut).bias(bias));
      linear->to(at::kBFloat16);
      quantize_(*linear, kLinear);
      const Tensor x = normal(shape).requires_grad_();
      const Tensor y = linear(x);
      EXPECT_EQ(y.scalar_type(), at::kBFloat16);
      const Tensor grad = normal(y.sizes(), at::kBFloat16, 9);
      y.backward(grad);

      const Tensor x2 = x.detach().clone().requires_grad_();
      const Tensor w2 = linear->weight.detach().to(at::kFloat).to(at::kBFloat16).requires_grad_();
      clear_tag(w2);
      std::optional<Tensor> b2;
      if (bias) b2 = linear->bias.detach().clone().requires_grad_();
      const Tensor y2 = quantize_then_linear(x2, w2, b2, kLinear);
      y2.backward(grad);
      EXPECT_TRUE(same_bits(y2, y));
      EXPECT_TRUE(same_bits(x2.grad(), x.grad()));
      EXPECT_TRUE(same_bits(w2.grad(), linear->weight.grad()));
      EXPECT_EQ(linear->weight.grad().strides(), linear->weight.strides());
      if (b2) {
        EXPECT_TRUE(same_bits(b2->grad(), linear->bias.grad()));
      }
    }
  }
}

TEST(AtenHooks, GroupedProducts) {
  const Tensor w = expert_weight();
  const Tensor a = normal({40, kIn}).requires_grad_();
  const Tensor offs = offs_of({7, 0, 33});
  const Tensor b_t = w.transpose(-2, -1);
  const Tensor out = at::_grouped_mm(a, b_t, offs);
  const Tensor expected = quantize_then_scaled_grouped_mm(a, b_t.detach(), offs, kExperts);
  EXPECT_TRUE(same_bits(expected, out));
  out.backward(normal(out.sizes(), at::kBFloat16, 5));
  EXPECT_EQ(w.grad().sizes(), w.sizes());
  EXPECT_EQ(a.grad().sizes(), a.sizes());
  EXPECT_TRUE(at::equal(w.grad()[1], at::zeros_like(w.grad()[1])));  // no tokens
}

TEST(AtenHooks, GroupedOutDtypeOfTheCallWins) {
  const Tensor b_t = expert_weight().transpose(-2, -1);
  const Tensor a = normal({40, kIn});
  const Tensor offs = offs_of({7, 0, 33});
  EXPECT_EQ(at::_grouped_mm(a, b_t, offs).scalar_type(), at::kBFloat16);
  EXPECT_EQ(at::_grouped_mm(a, b_t, offs, {}, at::kFloat).scalar_type(), at::kFloat);
  EXPECT_NE(error_of([&] { at::_grouped_mm(a, b_t, offs, {}, at::kHalf); }), "(no error)");
}

TEST(AtenHooks, GroupedProductsTakeABias) {
  const Tensor b_t = expert_weight().transpose(-2, -1);
  const Tensor a = normal({40, kIn});
  const Tensor offs = offs_of({7, 0, 33});
  const Tensor bias = normal({3, kOut}, at::kBFloat16, 6).requires_grad_();
  const Tensor out = at::_grouped_mm(a, b_t, offs, bias);
  EXPECT_TRUE(same_bits(quantize_then_scaled_grouped_mm(a, b_t, offs, kExperts, bias), out));
  out.sum().backward();
  EXPECT_EQ(bias.grad()[2][0].item<float>(), 33);
}

// Code that runs with a conversion must run without it: the same dtypes, the same errors.
TEST(AtenHooks, OperandsOfTwoDtypesAreRefusedAsByLibTorch) {
  const Tensor w = linear_weight();
  const Tensor plain = w.detach() + 0;
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) {
    const Tensor x = normal({40, kIn}).to(dtype), bias = normal({kOut}).to(dtype);
    const Tensor good = normal({40, kIn});
    const auto same_error = [](const char* op, const auto& call, const Tensor& converted,
                               const Tensor& unconverted) {
      const std::string error = error_of([&] { call(unconverted); });
      EXPECT_NE(error, "(no error)") << op;
      EXPECT_EQ(error, error_of([&] { call(converted); })) << op;
    };
    same_error(
        "mm", [&](const Tensor& W) { at::mm(x, W.t()); }, w, plain);
    same_error(
        "matmul", [&](const Tensor& W) { at::matmul(x, W.t()); }, w, plain);
    same_error(
        "linear", [&](const Tensor& W) { at::linear(x, W); }, w, plain);
    // LibTorch's linear is an addmm here, whose self moe8 refuses.
    EXPECT_NE(error_of([&] { at::linear(good, plain, bias); }), "(no error)");
    EXPECT_THAT(error_of([&] { at::linear(good, w, bias); }), HasSubstr("[addmm] self"));
    same_error(
        "addmm", [&](const Tensor& W) { at::addmm(bias, x, W.t()); }, w, plain);
    EXPECT_THAT(error_of([&] { at::addmm(bias, good, w.t()); }), HasSubstr("[addmm] self"));
  }
}

// What experts return has the dtype of their config: the next experts take it, whatever theirs is.
TEST(AtenHooks, ExpertsTakeTheResultsOfExperts) {
  const Tensor first = expert_weight(at::kFloat), second = expert_weight(at::kFloat);
  const Tensor a = normal({40, kIn}, at::kFloat).requires_grad_();
  const Tensor offs = offs_of({7, 0, 33});
  const Tensor hidden = at::_grouped_mm(a, first.transpose(-2, -1), offs);
  EXPECT_EQ(hidden.scalar_type(), at::kBFloat16);
  const Tensor out = at::_grouped_mm(hidden, second, offs);
  EXPECT_TRUE(same_bits(quantize_then_scaled_grouped_mm(hidden, second, offs, kExperts), out));
  out.sum().backward();
  EXPECT_EQ(first.grad().scalar_type(), at::kFloat);
}

// ---- what is not converted --------------------------------------------------
TEST(AtenHooks, PlainTensorsSeeLibTorch) {
  const Tensor converted = linear_weight();  // hooks in place and a tag alive
  const Tensor x = normal({6, kIn}).requires_grad_();
  const Tensor x3 = normal({2, 3, kIn});
  const Tensor w = normal({kOut, kIn}, at::kBFloat16, 2).requires_grad_();
  const Tensor bias = normal({kOut}).requires_grad_();
  const Tensor w3 = normal({2, kOut, kIn}, at::kBFloat16, 2).requires_grad_();
  const Tensor offs = offs_of({2, 4});
  const std::vector<std::pair<const char*, std::function<Tensor()>>> calls = {
      {"MmBackward0", [&] { return at::mm(x, w.t()); }},
      {"MmBackward0", [&] { return at::matmul(x, w.t()); }},
      {"UnsafeViewBackward0", [&] { return at::matmul(x3, w.t()); }},
      {"AddmmBackward0", [&] { return at::addmm(bias, x, w.t()); }},
      {"AddmmBackward0", [&] { return at::linear(x, w, bias); }},
      {"ToCopyBackward0", [&] { return w.to(at::kFloat); }},
      {"CloneBackward0", [&] { return w.clone(); }},
      {"GroupedMmBackward0", [&] { return at::_grouped_mm(x, w3.transpose(-2, -1), offs); }},
      {"BmmBackward0", [&] { return at::bmm(x3, w3.transpose(-2, -1)); }},
      {"UnsafeViewBackward0", [&] { return at::matmul(x3, w3.transpose(-2, -1)); }},
      {"BaddbmmBackward0", [&] { return at::baddbmm(bias, x3, w3.transpose(-2, -1)); }},
      {"MvBackward0", [&] { return at::mv(w, x3[0][0]); }},
      {"AddmvBackward0", [&] { return at::addmv(bias, w, x3[0][0]); }},
      {"CatBackward0",
       [&] {
         return at::cat({w, w});
       }},
      {"StackBackward0",
       [&] {
         return at::stack({w, w});
       }},
      {"IndexSelectBackward0",
       [&] {
         return w.index_select(0, at::tensor({2, 1}));
       }},
      {"IndexBackward0",
       [&] {
         return w.index({at::tensor({2, 1})});
       }},
  };
  const auto run = [&](const std::function<Tensor()>& call) {
    for (const Tensor& leaf : {x, w, bias, w3}) leaf.mutable_grad() = Tensor();
    const Tensor y = call();
    y.backward(normal(y.sizes(), y.scalar_type(), 11));
    std::vector<Tensor> results{y.detach()};
    for (const Tensor& leaf : {x, w, bias, w3}) {
      if (leaf.grad().defined()) results.push_back(leaf.grad().clone());
    }
    return std::make_pair(grad_fn_of(y), results);
  };
  for (const auto& [grad_fn, call] : calls) {
    const auto [hooked_fn, hooked] = run(call);
    const WithoutAtenHooks without;
    const auto [plain_fn, plain] = run(call);
    EXPECT_EQ(hooked_fn, grad_fn);
    EXPECT_EQ(hooked_fn, plain_fn);
    ASSERT_EQ(hooked.size(), plain.size());
    for (size_t i = 0; i < plain.size(); ++i)
      EXPECT_TRUE(same_bits(plain[i], hooked[i])) << grad_fn;
  }
}

TEST(AtenHooks, OtherOperandsOfPlainProducts) {
  const Tensor converted = linear_weight();
  const Tensor dense = at::rand({4, 4});
  const Tensor sparse = at::eye(4).to_sparse();
  EXPECT_TRUE(at::equal(at::mm(sparse, dense), dense));
  EXPECT_TRUE(at::allclose(at::mm(dense.to(at::kDouble), dense.to(at::kDouble)),
                           at::mm(dense, dense).to(at::kDouble)));
  EXPECT_EQ(at::mm(at::empty({4, 4}, at::kMeta), at::empty({4, 4}, at::kMeta)).device(), at::kMeta);
  const c10::InferenceMode inference;
  EXPECT_TRUE(at::equal(at::mm(at::eye(4), dense), dense));
  EXPECT_TRUE(at::equal(at::matmul(at::eye(4), dense), dense));
  EXPECT_TRUE(at::equal(at::linear(at::eye(4), dense), dense.t()));
}

TEST(AtenHooks, CanBeTakenOutAndPutBack) {
  const Tensor w = linear_weight();
  const Tensor x = normal({5, kIn});
  EXPECT_TRUE(aten_hooks_installed());
  {
    const WithoutAtenHooks without;
    EXPECT_FALSE(aten_hooks_installed());
    EXPECT_EQ(grad_fn_of(at::mm(x, w.t())), "MmBackward0");
  }
  EXPECT_TRUE(aten_hooks_installed());
  EXPECT_TRUE(same_bits(oracle(x, w), at::mm(x, w.t())));
  install_aten_hooks();  // a second time changes nothing
  EXPECT_TRUE(same_bits(oracle(x, w), at::mm(x, w.t())));
}

// ---- modes of LibTorch ------------------------------------------------------
struct Autocast {
  explicit Autocast(at::ScalarType dtype) {
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
};

TEST(AtenHooks, Autocast) {
  Linear linear(LinearOptions(kIn, kOut));
  quantize_(*linear, kLinear);
  const Tensor x = normal({5, kIn}, at::kFloat);
  const Tensor expected =
      oracle(x.to(at::kBFloat16), linear->weight.to(at::kBFloat16), linear->bias.to(at::kBFloat16));
  {
    const Autocast autocast(at::kBFloat16);
    EXPECT_TRUE(same_bits(expected, linear(x)));
    EXPECT_TRUE(same_bits(expected, linear(x)));  // the cached cast of the weight
    EXPECT_TRUE(same_bits(expected, at::linear(x, linear->weight, linear->bias)));
    const at::NoGradGuard no_grad;
    EXPECT_TRUE(same_bits(expected, linear(x)));
    const Tensor x3 = x.unsqueeze(0);
    EXPECT_TRUE(same_bits(expected.unsqueeze(0), at::linear(x3, linear->weight, linear->bias)));
  }
  {
    const Autocast autocast(at::kBFloat16);
    linear(x).sum().backward();
    EXPECT_EQ(linear->weight.grad().scalar_type(), at::kFloat);
    // Taking the conversion back also reaches the cached cast.
    dequantize_(*linear);
    EXPECT_EQ(grad_fn_of(linear(x)), "AddmmBackward0");
  }
}

TEST(AtenHooks, NoGradAndInferenceModeEqualTraining) {
  Linear linear(LinearOptions(kIn, kOut));
  linear->to(at::kBFloat16);
  quantize_(*linear, kLinear);
  const Tensor w3 = expert_weight();
  const Tensor offs = offs_of({7, 0, 33});
  const Tensor x = normal({40, kIn});
  const Tensor x3 = normal({3, kIn, 4}).transpose(1, 2);  // would become bmm
  const auto run = [&] {
    return std::vector<Tensor>{linear(x),
                               linear(x3),
                               at::linear(x3, linear->weight),
                               at::_grouped_mm(x, w3.transpose(-2, -1), offs),
                               at::mm(x, linear->weight.to(at::kFloat).to(at::kBFloat16).t()),
                               at::mm(x, linear->weight.clone().t())};
  };
  const std::vector<Tensor> training = run();
  EXPECT_NE(grad_fn_of(training[1]), "UnsafeViewBackward0");
  {
    const at::NoGradGuard no_grad;
    const std::vector<Tensor> got = run();
    for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(training[i], got[i])) << i;
  }
  const c10::InferenceMode inference;
  const std::vector<Tensor> got = run();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(training[i], got[i])) << i;
  const Autocast autocast(at::kBFloat16);
  EXPECT_TRUE(same_bits(training[0], linear(x.to(at::kFloat))));
}

TEST(AtenHooks, ModelsMadeInInferenceMode) {
  const c10::InferenceMode inference;
  Linear linear(LinearOptions(kIn, kOut));  // its weight has no views that know their base
  quantize_(*linear, kLinear);
  const Tensor x = normal({5, kIn}, at::kFloat);
  const Tensor expected = oracle(x, linear->weight, linear->bias);
  EXPECT_TRUE(same_bits(expected, linear(x)));
  dequantize_(*linear);
  EXPECT_FALSE(at::equal(expected, linear(x)));
}

TEST(AtenHooks, ConfigsThatLeaveAProductInHighPrecisionDoNotRecurse) {
  // The GEMM of the output is in high precision: its weight is the tagged one.
  const CastConfig off{.scaling_type = ScalingType::DISABLED};
  Float8LinearConfig config;
  config.cast_config_input = off;
  config.cast_config_weight = off;
  config.cast_config_grad_output = off;
  Linear linear(LinearOptions(kIn, kOut).bias(false));
  quantize_(*linear, Config(config));
  const Tensor x = normal({5, kIn}, at::kFloat);
  const Tensor expected = [&] {
    const WithoutAtenHooks without;
    return at::matmul(x, linear->weight.t()).detach();
  }();
  EXPECT_GT(testing::sqnr_db(expected, linear(x)), 40);
  const c10::InferenceMode inference;
  EXPECT_GT(testing::sqnr_db(expected, linear(x)), 40);
}

TEST(AtenHooks, SeveralThreads) {
  Linear linear(LinearOptions(kIn, kOut));
  quantize_(*linear, kLinear);
  const Tensor x = normal({5, kIn}, at::kFloat);
  const Tensor expected = oracle(x, linear->weight, linear->bias);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  threads.reserve(wrong.size());
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const Tensor y = linear(x);
        count += !at::equal(expected, y);
        if (i % 10 == 0) torch::autograd::grad({y.sum()}, {linear->weight});
        // Another model converted meanwhile: the registry changes, the hooks do not.
        if (i % 5 == 0) set_tag(at::rand({4, 4}), kLinear);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(AtenHooks, DoubleBackwardIsAClearError) {
  Linear linear(LinearOptions(kIn, kOut));
  quantize_(*linear, kLinear);
  const Tensor x = normal({5, kIn}, at::kFloat).requires_grad_();
  const auto grads = torch::autograd::grad({linear(x).pow(2).sum()}, {x}, {}, true, true);
  EXPECT_THAT(error_of([&] { grads[0].sum().backward(); }), HasSubstr("twice"));
}

TEST(AtenHooks, UnsupportedInputsAreErrorsNotHighPrecision) {
  const Tensor w = linear_weight();
  EXPECT_THAT(error_of([&] {
                at::mm(normal({5, kIn}).to(at::kHalf), w.t());
              }),
              HasSubstr("same dtype"));
  EXPECT_THAT(error_of([&] { at::mm(normal({5, kIn + 1}), w.t()); }), HasSubstr("[..., 64]"));
  // mm takes matrices only, converted or not.
  EXPECT_THAT(error_of([&] { at::mm(normal({2, 5, kIn}), w.t()); }), HasSubstr("must be a matrix"));
}

// ---- cost -------------------------------------------------------------------
double best_ns_per_call(const Tensor& x, const Tensor& w) {
  double best = 1e9;
  for (int round = 0; round < 60; ++round) {
    const auto start = std::chrono::steady_clock::now();
    constexpr int kCalls = 500;
    for (int i = 0; i < kCalls; ++i) at::mm(x, w);
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count() / kCalls);
  }
  return best;
}

TEST(AtenHooks, CostOfAnUnconvertedCall) {
  const Tensor converted = linear_weight();
  const Tensor x = at::rand({4, 4});
  const Tensor base = at::rand({4, 4});
  const Tensor w = base.t();  // a view, as every Linear passes: the longest way to "no tag"
  double extra = 1e9;
  for (int attempt = 0; attempt < 5 && extra > 300; ++attempt) {
    const double hooked = best_ns_per_call(x, w);
    const WithoutAtenHooks without;
    const double plain = best_ns_per_call(x, w);
    extra = std::min(extra, hooked - plain);
    std::printf("mm 4x4: %.0f ns hooked, %.0f ns plain\n", hooked, plain);
  }
  EXPECT_LT(extra, 1000);
}

}  // namespace
}  // namespace moe8
