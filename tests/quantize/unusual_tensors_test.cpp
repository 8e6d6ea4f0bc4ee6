// SPDX-License-Identifier: BSD-3-Clause
// Tensors that are no plain arrays, at every entry: what LibTorch keeps beside the memory (zeros
// without memory, negative views) gives the results of the values written out; what has no such
// values is refused by the name of the argument.
#include <ATen/ops/_add_batch_dim.h>
#include <torch/torch.h>

#include <functional>
#include <vector>

#include "moe8/blocked_scales.h"
#include "moe8/moe8.h"
#include "moe8/safetensors.h"
#include "quantize/check_input.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::error_of;
using ::testing::HasSubstr;
using testing::offs_of;
using testing::same_bits;

constexpr int64_t kRows = 4;
constexpr int64_t kColumns = 64;

// Each with the memory of one thing and the values of another.
std::vector<std::pair<const char*, Tensor>> special_tensors() {
  const Tensor z = at::complex(at::randn({kRows, kColumns}), at::randn({kRows, kColumns}));
  return {{"zero tensor", at::_efficientzerotensor({kRows, kColumns}, at::kFloat)},
          {"bf16 zero tensor", at::_efficientzerotensor({kRows, kColumns}, at::kBFloat16)},
          {"negative view", at::_neg_view(at::randn({kRows, kColumns}))},
          {"transposed negative view", at::_neg_view(at::randn({kColumns, kRows})).t()},
          {"imaginary part of a conjugate", at::imag(at::conj(z))}};
}

Tensor plain(const Tensor& x) {
  const Tensor values = at::empty(x.sizes(), x.options());
  for (int64_t i = 0; i < x.size(0); ++i) values[i].copy_(x[i].clone());
  return values;
}

// ---- values that are not in the memory --------------------------------------
TEST(UnusualTensors, AreQuantizedAsTheirValues) {
  using F = std::function<Tensor(const Tensor&)>;
  const auto axiswise = Float8Granularity::axiswise(0);
  const std::vector<std::pair<const char*, F>> quantizers = {
      {"quantize_mx", [](const Tensor& x) { return dequantize(quantize_mx(x)); }},
      {"quantize_mx, first axis",
       [](const Tensor& x) {
         return dequantize(quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0));
       }},
      {"fake_quantize_mx",
       [](const Tensor& x) {
         return fake_quantize_mx(x, ElemDtype::E2M1, ScaleCalculationMode::FLOOR);
       }},
      {"quantize_float8, tensorwise",
       [](const Tensor& x) {
         return dequantize(quantize_float8(x, Float8Granularity::tensorwise()));
       }},
      {"quantize_float8, axiswise",
       [&](const Tensor& x) { return dequantize(quantize_float8(x, axiswise)); }},
      {"fake_quantize_float8",
       [&](const Tensor& x) { return fake_quantize_float8(x, axiswise, ElemDtype::E5M2, true); }},
  };
  for (const auto& [kind, x] : special_tensors()) {
    for (const auto& [name, quantize] : quantizers) {
      EXPECT_TRUE(same_bits(quantize(plain(x)), quantize(x))) << name << " of a " << kind;
    }
  }
}

struct Gradients {
  Tensor y, x, weight, bias;
};

Gradients train(const std::function<Tensor(const Tensor&, const Tensor&, const Tensor&)>& op,
                const Tensor& x, const Tensor& weight, const Tensor& bias,
                const std::optional<Tensor>& grad) {
  const auto leaf = [](const Tensor& t) { return t.detach().requires_grad_(); };
  const Tensor leaf_x = leaf(x), leaf_w = leaf(weight), leaf_b = leaf(bias);
  const Tensor y = op(leaf_x, leaf_w, leaf_b);
  y.backward(grad ? *grad : at::ones_like(y));
  return {y.detach(), leaf_x.grad(), leaf_w.grad(), leaf_b.grad()};
}

void expect_same(const Gradients& expected, const Gradients& got, const std::string& what) {
  EXPECT_TRUE(same_bits(expected.y, got.y)) << what;
  EXPECT_TRUE(same_bits(expected.x, got.x)) << what;
  EXPECT_TRUE(same_bits(expected.weight, got.weight)) << what;
  EXPECT_TRUE(same_bits(expected.bias, got.bias)) << what;
}

TEST(UnusualTensors, MultiplyAsTheirValuesInLinears) {
  torch::manual_seed(1);
  const Tensor x = at::randn({kRows, kColumns}), w = at::randn({kRows, kColumns});
  const Tensor b = at::randn({kRows});
  for (const char* name : {"mxfp8_cublas", "rowwise", "tensorwise", "rowwise_with_gw_hp"}) {
    const auto op = [&](const Tensor& a, const Tensor& weight, const Tensor& bias) {
      return quantize_then_linear(a, weight, bias, recipe(name));
    };
    for (const auto& [kind, special] : special_tensors()) {
      const Tensor s = special, written = plain(special);
      const std::string what = std::string(name) + ", " + kind;
      expect_same(train(op, written, w, b, {}), train(op, s, w, b, {}), what + " as input");
      expect_same(train(op, x, written, b, {}), train(op, x, s, b, {}), what + " as weight");
      expect_same(train(op, x, w, written[0].narrow(0, 0, kRows), {}),
                  train(op, x, w, s[0].narrow(0, 0, kRows), {}), what + " as bias");
      const auto gradient = [](const Tensor& t) { return t.narrow(1, 0, kRows).to(at::kFloat); };
      const Tensor g = s.scalar_type() == at::kFloat ? s.narrow(1, 0, kRows) : gradient(s);
      expect_same(train(op, x, w, b, gradient(written)), train(op, x, w, b, g),
                  what + " as gradient");
    }
  }
}

TEST(UnusualTensors, MultiplyAsTheirValuesInExperts) {
  torch::manual_seed(1);
  const Tensor x = at::randn({kRows, kColumns}), w = at::randn({3, 32, kColumns});
  const Tensor b = at::randn({3, 32}), offs = offs_of({1, 0, 3});
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp"}) {
    const auto op = [&](const Tensor& a, const Tensor& weight, const Tensor& bias) {
      return quantize_then_scaled_grouped_mm(a, weight.transpose(1, 2), offs, recipe(name), bias);
    };
    for (const auto& [kind, special] : special_tensors()) {
      const std::string what = std::string(name) + ", " + kind;
      expect_same(train(op, plain(special), w, b, {}), train(op, special, w, b, {}), what);
    }
    const Tensor gradient = at::_neg_view(at::randn({kRows, 32}).to(at::kBFloat16));
    expect_same(train(op, x, w, b, plain(gradient)), train(op, x, w, b, gradient), name);
    const Tensor weight = at::_neg_view(w), bias = at::_neg_view(b);
    expect_same(train(op, x, weight.clone(), bias.clone(), {}), train(op, x, weight, bias, {}),
                name);
  }
}

// The derivative of sgn is a zero tensor.
TEST(UnusualTensors, GradientsOfConvertedLayersMayBeZeroTensors) {
  for (const char* name : {"mxfp8_cublas", "tensorwise", "rowwise", "mxfp8_emulated"}) {
    torch::nn::Linear linear(kColumns, 32);
    quantize_(*linear, recipe(name));
    const Tensor x = torch::randn({16, kColumns}).requires_grad_();
    torch::sgn(linear(x)).sum().backward();
    for (const Tensor& grad : {x.grad(), linear->weight.grad(), linear->bias.grad()}) {
      EXPECT_TRUE(grad.eq(0).all().item<bool>()) << name;
    }
  }
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    const Tensor x = torch::randn({kRows, kColumns}).requires_grad_();
    const Tensor w = torch::randn({3, kColumns, 32}).requires_grad_();
    const Tensor b = torch::randn({3, 32}).requires_grad_();
    torch::sgn(quantize_then_scaled_grouped_mm(x, w, offs_of({1, 0, 3}), recipe(name), b))
        .sum()
        .backward();
    for (const Tensor& grad : {x.grad(), w.grad(), b.grad()}) {
      EXPECT_TRUE(grad.eq(0).all().item<bool>()) << name;
    }
  }
}

TEST(UnusualTensors, AreSavedAsTheirValues) {
  const testing::TemporaryFolder folder;
  for (const auto& [kind, x] : special_tensors()) {
    save_safetensors(folder / "file", {{"x", x}});
    EXPECT_TRUE(same_bits(plain(x), load_safetensors(folder / "file").at("x"))) << kind;
  }
}

TEST(UnusualTensors, AreNoPartsOfQuantizedOnes) {
  const Tensor x = at::randn({kRows, kColumns});
  Float8Tensor float8 = quantize_float8(x, Float8Granularity::axiswise(-1));
  float8.scale = at::_efficientzerotensor(float8.scale.sizes(), at::kFloat);
  EXPECT_THAT(error_of([&] { dequantize(float8); }), HasSubstr("a zero tensor without memory"));
  MXTensor mx = quantize_mx(x);
  mx.scale = at::_efficientzerotensor(mx.scale.sizes(), mx.scale.options());
  EXPECT_THAT(error_of([&] { dequantize(mx); }), HasSubstr("a zero tensor without memory"));
  EXPECT_THAT(error_of([&] {
                to_blocked(at::_efficientzerotensor({4, 4}, at::kByte));
              }),
              HasSubstr("scale: expected values in memory, got a zero tensor without memory"));
  EXPECT_THAT(error_of([&] {
                to_mxfp8_then_scaled_grouped_mm(x, at::randn({3, kColumns, 32}),
                                                at::_efficientzerotensor({3}, at::kInt));
              }),
              HasSubstr("offs: expected values in memory, got a zero tensor without memory"));
}

// ---- no values --------------------------------------------------------------
struct Refused {
  const char* what;  // as the message has it
  std::function<Tensor(const Tensor&)> make;
};

const std::vector<Refused>& refused() {
  static const std::vector<Refused> all = {
      {"a sparse tensor", [](const Tensor& x) { return x.to_sparse(); }},
      {"a sparse tensor",
       [](const Tensor& x) { return x.dim() == 2 ? x.to_sparse_csr() : x.to_sparse(); }},
      {"a nested tensor",
       [](const Tensor& x) {
         return at::_nested_tensor_from_tensor_list({x, x});
       }},
      {"a meta tensor", [](const Tensor& x) { return x.to(at::kMeta); }},
      {"a tensor of a function transform",
       [](const Tensor& x) {
         return at::_add_batch_dim(at::stack({x, x}), 0, 1);
       }},
  };
  return all;
}

TEST(UnusualTensors, WithoutValuesAreRefusedByName) {
  torch::manual_seed(1);
  const Tensor x = at::randn({kRows, kColumns}), w = at::randn({32, kColumns}), b = at::randn({32});
  const Tensor experts = at::randn({3, kColumns, 32}), bias = at::randn({3, 32});
  const Tensor offs = offs_of({1, 0, 3});
  const Config linear = recipe("rowwise"), grouped = recipe("mxfp8_rceil");
  const auto expert_product = [&](const Tensor& a, const Tensor& B_t, const Tensor& ends,
                                  const Tensor& c) {
    quantize_then_scaled_grouped_mm(a, B_t, ends, grouped, c);
  };
  struct Entry {
    const char* name;  // "[op] argument"
    Tensor good;
    std::function<void(const Tensor&)> call;
  };
  const std::vector<Entry> entries = {
      {"[quantize_mx] x", x, [](const Tensor& t) { quantize_mx(t); }},
      {"[fake_quantize_mx] x", x,
       [](const Tensor& t) { fake_quantize_mx(t, ElemDtype::E4M3, ScaleCalculationMode::FLOOR); }},
      {"[quantize_float8] x", x,
       [](const Tensor& t) { quantize_float8(t, Float8Granularity::axiswise(-1)); }},
      {"[fake_quantize_float8] x", x,
       [](const Tensor& t) {
         fake_quantize_float8(t, Float8Granularity::tensorwise(), ElemDtype::E4M3, false);
       }},
      {"[to_blocked] scale", at::zeros({4, 4}, at::kByte), [](const Tensor& t) { to_blocked(t); }},
      {"[quantize_then_linear] x", x,
       [&](const Tensor& t) { quantize_then_linear(t, w, b, linear); }},
      {"[quantize_then_linear] weight", w,
       [&](const Tensor& t) { quantize_then_linear(x, t, b, linear); }},
      {"[quantize_then_linear] bias", b,
       [&](const Tensor& t) { quantize_then_linear(x, w, t, linear); }},
      {"[to_mxfp8_then_scaled_grouped_mm] A", x,
       [&](const Tensor& t) { expert_product(t, experts, offs, bias); }},
      {"[to_mxfp8_then_scaled_grouped_mm] B_t", experts,
       [&](const Tensor& t) { expert_product(x, t, offs, bias); }},
      {"[to_mxfp8_then_scaled_grouped_mm] offs", offs,
       [&](const Tensor& t) { expert_product(x, experts, t, bias); }},
      {"[to_mxfp8_then_scaled_grouped_mm] bias", bias,
       [&](const Tensor& t) { expert_product(x, experts, offs, t); }},
  };
  for (const Entry& entry : entries) {
    for (const Refused& refusal : refused()) {
      EXPECT_THAT(
          error_of([&] { entry.call(refusal.make(entry.good)); }),
          HasSubstr(std::string(entry.name) + ": expected a dense tensor, got " + refusal.what));
    }
  }
  EXPECT_THAT(error_of([&] { quantize_mx(x.to_mkldnn()); }), HasSubstr("got an mkldnn tensor"));
}

TEST(UnusualTensors, GradientsWithoutValuesAreRefused) {
  const Tensor x = at::randn({kRows, kColumns}).requires_grad_();
  const Tensor y =
      quantize_then_linear(x, at::randn({32, kColumns}), std::nullopt, recipe("rowwise"));
  EXPECT_THAT(error_of([&] {
                y.backward(at::randn({kRows, 32}).to_sparse());
              }),
              HasSubstr("gradient of the output: expected a dense tensor, got a sparse tensor"));
}

// ---- offs -------------------------------------------------------------------
TEST(CheckOffs, Int64ComesFromCumsum) {
  const Tensor counts = at::tensor({1, 0, 3}, at::kInt);
  EXPECT_THAT(error_of([&] { check_offs("op", counts.cumsum(0), 3, 4, at::kCPU); }),
              HasSubstr("offs: expected 1-D int32 end rows, got Long [3] on cpu. cumsum() of int32 "
                        "gives int64: call .to(torch::kInt32)"));
}

TEST(CheckOffs, StartRowsAreHintedAt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process that has not read MOE8_LOG yet
  EXPECT_EXIT(
      {
        ::setenv("MOE8_LOG", "info", 1);
        check_offs("op", at::tensor({0, 1, 1}, at::kInt), 3, 4, at::kCPU);
        std::exit(0);
      },
      ::testing::ExitedWithCode(0),
      "first group has no rows, and the rows 1 to 3 are in no group.*Start rows look like this");
}

}  // namespace
}  // namespace moe8
