// SPDX-License-Identifier: BSD-3-Clause
// Products that write into a tensor of the caller's (out=, in place) or ask for a dtype.
#include "convert/hooks/agree.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::equal_groups;
using testing::error_of;
using testing::expect_agreement;
using testing::grouped_configs;
using ::testing::HasSubstr;
using testing::linear_configs;
using testing::normal;
using testing::offs_of;
using testing::one_group;
using testing::same_bits;
using testing::Weights;
using testing::with_dtype;

constexpr int64_t E = 3, T = 5, K = 64, N = 96;

struct Weight {
  Tensor linear;   // [N, K]
  Tensor experts;  // [E, K, N]
};

Weight weights(at::ScalarType dtype = at::kFloat, bool requires_grad = false) {
  install_aten_hooks();
  Weight w{normal({N, K}, dtype, 7).requires_grad_(requires_grad),
           normal({E, K, N}, dtype, 8).requires_grad_(requires_grad)};
  set_tag(w.linear, linear_configs()[0]);
  set_tag(w.experts, grouped_configs()[0]);
  return w;
}

TEST(Out, IsWrittenWithTheSameBits) {
  const at::ScalarType dtype = at::kFloat;
  const Weight w = weights(dtype, /*requires_grad=*/true);
  const Tensor x = normal({T, K}, dtype), x3 = normal({E, T, K}, dtype), v = normal({K}, dtype);
  const Tensor bias = normal({N}, dtype, 3), self3 = normal({E, T, N}, dtype, 4);
  struct Call {
    const char* name;
    std::function<Tensor()> returns;
    std::function<void(Tensor&)> writes;
  };
  const std::vector<Call> calls{
      {"mm", [&] { return at::mm(x, w.linear.t()); },
       [&](Tensor& out) { at::mm_out(out, x, w.linear.t()); }},
      {"mm of a slice", [&] { return at::mm(x, w.experts[1]); },
       [&](Tensor& out) { at::mm_out(out, x, w.experts[1]); }},
      {"mm, weight on the left", [&] { return at::mm(w.linear, x.t()); },
       [&](Tensor& out) { at::mm_out(out, w.linear, x.t()); }},
      {"addmm", [&] { return at::addmm(bias, x, w.linear.t()); },
       [&](Tensor& out) { at::addmm_out(out, bias, x, w.linear.t()); }},
      {"matmul", [&] { return at::matmul(x, w.linear.t()); },
       [&](Tensor& out) { at::matmul_out(out, x, w.linear.t()); }},
      {"matmul of experts", [&] { return at::matmul(x3, w.experts); },
       [&](Tensor& out) { at::matmul_out(out, x3, w.experts); }},
      {"linear", [&] { return at::linear(x, w.linear, bias); },
       [&](Tensor& out) { at::linear_out(out, x, w.linear, bias); }},
      {"bmm", [&] { return at::bmm(x3, w.experts); },
       [&](Tensor& out) { at::bmm_out(out, x3, w.experts); }},
      {"baddbmm", [&] { return at::baddbmm(self3, x3, w.experts, 2, 3); },
       [&](Tensor& out) { at::baddbmm_out(out, self3, x3, w.experts, 2, 3); }},
      {"mv", [&] { return at::mv(w.linear, v); },
       [&](Tensor& out) { at::mv_out(out, w.linear, v); }},
      {"addmv", [&] { return at::addmv(bias, w.linear, v); },
       [&](Tensor& out) { at::addmv_out(out, bias, w.linear, v); }},
  };
  for (const Call& call : calls) {
    SCOPED_TRACE(call.name);
    const at::NoGradGuard no_grad;
    const Tensor expected = call.returns();
    EXPECT_FALSE(at::equal(expected, [&] {
      const WithoutAtenHooks without;
      return call.returns();
    }()));
    Tensor out = at::empty_like(expected);
    const void* memory = out.data_ptr();
    call.writes(out);
    EXPECT_TRUE(same_bits(expected, out));
    EXPECT_EQ(out.data_ptr(), memory);
    Tensor empty = at::empty({0}, dtype);
    call.writes(empty);
    EXPECT_TRUE(same_bits(expected, empty));
    if (expected.dim() > 1) {
      Tensor strided = at::empty_like(expected.mT().contiguous()).mT();
      call.writes(strided);
      EXPECT_TRUE(same_bits(expected, strided.contiguous()));
    }
    const c10::InferenceMode inference;
    Tensor in_inference = at::empty_like(expected);
    call.writes(in_inference);
    EXPECT_TRUE(same_bits(expected, in_inference));
  }
}

TEST(Out, WithGradientsOrAnotherDtypeIsLibTorchsError) {
  const Weight w = weights(at::kFloat, /*requires_grad=*/true);
  const Tensor x = normal({T, K}, at::kFloat), x3 = normal({E, T, K}, at::kFloat);
  Tensor out = at::empty({T, N}), out3 = at::empty({E, T, N});
  const std::vector<std::function<void()>> calls{
      [&] { at::mm_out(out, x, w.linear.t()); },
      [&] { at::addmm_out(out, out, x, w.linear.t()); },
      [&] { at::bmm_out(out3, x3, w.experts); },
      [&] { at::matmul_out(out, x, w.linear.t()); },
  };
  for (const auto& call : calls) {
    EXPECT_THAT(error_of(call), HasSubstr("don't support automatic differentiation"));
  }
  const at::NoGradGuard no_grad;
  Tensor half = at::empty({T, N}, at::kBFloat16);
  EXPECT_THAT(error_of([&] { at::mm_out(half, x, w.linear.t()); }), HasSubstr("dtype"));
}

TEST(Out, DtypeOfTheCall) {
  const Weight w = weights(at::kBFloat16);
  const Tensor x = normal({T, K}), x3 = normal({E, T, K});
  const Config wide = with_dtype(grouped_configs()[0], at::kFloat);
  const Tensor expected =
      quantize_then_scaled_grouped_mm(x, w.experts.narrow(0, 1, 1).clone(), offs_of({T}), wide);
  EXPECT_TRUE(same_bits(expected, at::mm(x, w.experts[1], at::kFloat)));
  const Tensor self = normal({T, N}, at::kFloat, 3);
  EXPECT_TRUE(
      same_bits(expected * 3 + self * 2, at::addmm(self, x, w.experts[1], at::kFloat, 2, 3)));
  const Tensor expected3 =
      quantize_then_scaled_grouped_mm(x3.view({-1, K}), w.experts, offs_of({T, T, T}), wide)
          .view({E, T, N});
  EXPECT_TRUE(same_bits(expected3, at::bmm(x3, w.experts, at::kFloat)));
  const Tensor self3 = normal({E, T, N}, at::kFloat, 3);
  EXPECT_TRUE(same_bits(expected3 + self3, at::baddbmm(self3, x3, w.experts, at::kFloat)));
  Tensor out = at::empty({T, N}), out3 = at::empty({E, T, N});
  EXPECT_TRUE(same_bits(expected, at::mm_out(out, x, w.experts[1], at::kFloat)));
  EXPECT_TRUE(same_bits(expected3, at::bmm_out(out3, x3, w.experts, at::kFloat)));
  // A linear layer's product, before it is rounded to bfloat16.
  const Tensor y = at::mm(x, w.linear.t(), at::kFloat);
  EXPECT_EQ(y.scalar_type(), at::kFloat);
  EXPECT_TRUE(same_bits(at::mm(x, w.linear.t()), y.to(at::kBFloat16)));
}

TEST(Out, InPlaceSums) {
  for (const auto& [beta, alpha] : std::vector<std::pair<double, double>>{{1, 1}, {2, 3}, {0, 1}}) {
    const auto in_place = [&, b = beta, a = alpha](const Tensor& x, const Weights& w) {
      Tensor self = x.narrow(1, 0, 32) * 0.5;
      self.addmm_(x, w[0].t(), b, a);
      return self;
    };
    const Config config = linear_configs()[0];
    const auto function = [&, b = beta, a = alpha](const Tensor& x, const Weights& w) {
      const Tensor product = quantize_then_linear(x, w[0], {}, config);
      const Tensor self = x.narrow(1, 0, 32) * 0.5;
      return b == 0 ? product * a + self * 0 : product * a + self * b;
    };
    expect_agreement("addmm_", in_place, function, normal({T, K}, at::kFloat),
                     {normal({32, K}, at::kFloat, 2)}, config);
  }
  for (const Config& config : grouped_configs()) {
    expect_agreement(
        "baddbmm_",
        [](const Tensor& x, const Weights& w) {
          Tensor self = x.narrow(2, 0, 32) * 0.5;
          self.baddbmm_(x, w[0]);
          return self;
        },
        [&](const Tensor& x, const Weights& w) {
          return equal_groups(x, w[0], config) + x.narrow(2, 0, 32) * 0.5;
        },
        normal({E, T, K}), {normal({E, K, 32}, at::kBFloat16, 2)}, config);
    expect_agreement(
        "addmv_",
        [](const Tensor& x, const Weights& w) {
          Tensor self = x.narrow(0, 0, 32) * 0.5;
          self.addmv_(w[0][1].t(), x);
          return self;
        },
        [&](const Tensor& x, const Weights& w) {
          return one_group(x, w[0][1], config) + x.narrow(0, 0, 32) * 0.5;
        },
        normal({K}), {normal({E, K, 32}, at::kBFloat16, 2)}, config);
  }
}

}  // namespace
}  // namespace moe8
