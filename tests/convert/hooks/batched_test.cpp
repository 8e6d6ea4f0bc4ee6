// SPDX-License-Identifier: BSD-3-Clause
// Products of all experts at once: bmm, baddbmm, 3-D matmul, einsum, _grouped_mm without offs.
#include "convert/hooks/agree.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::dtypes;
using testing::equal_groups;
using testing::error_of;
using testing::expect_agreement;
using testing::grouped_configs;
using testing::linear_configs;
using testing::normal;
using testing::one_group;
using testing::same_bits;
using testing::Weights;

constexpr int64_t E = 3, T = 5, K = 64, N = 96;

struct Style {
  const char* name;
  std::vector<int64_t> x_shape;
  std::vector<int64_t> weight_shape;
  std::function<Tensor(const Tensor& x, const Tensor& w)> style;
  std::function<Tensor(const Tensor& x, const Tensor& w, const Config& config)> function;
};

void expect_all(const std::vector<Style>& styles) {
  for (const at::ScalarType dtype : dtypes()) {
    for (const Config& config : grouped_configs()) {
      for (const Style& s : styles) {
        expect_agreement(
            s.name, [&](const Tensor& x, const Weights& w) { return s.style(x, w[0]); },
            [&](const Tensor& x, const Weights& w) { return s.function(x, w[0], config); },
            normal(s.x_shape, dtype, 1), {normal(s.weight_shape, dtype, 2)}, config);
      }
    }
  }
}

// Weights as Llama 4 and gpt-oss store them, [E, K, N].
const auto kByInputs = [](const Tensor& x, const Tensor& w, const Config& c) {
  return equal_groups(x, w, c);
};
// Weights [E, N, K].
const auto kByOutputs = [](const Tensor& x, const Tensor& w, const Config& c) {
  return equal_groups(x, w.transpose(1, 2), c);
};

TEST(Batched, EveryExpertHasItsTokens) {
  expect_all({
      {"bmm, [E, K, N]",
       {E, T, K},
       {E, K, N},
       [](const Tensor& x, const Tensor& w) { return at::bmm(x, w); },
       kByInputs},
      {"bmm, [E, N, K]",
       {E, T, K},
       {E, N, K},
       [](const Tensor& x, const Tensor& w) { return at::bmm(x, w.transpose(1, 2)); },
       kByOutputs},
      {"matmul, [E, K, N]",
       {E, T, K},
       {E, K, N},
       [](const Tensor& x, const Tensor& w) { return at::matmul(x, w); },
       kByInputs},
      {"matmul, [E, N, K]",
       {E, T, K},
       {E, N, K},
       [](const Tensor& x, const Tensor& w) { return x.matmul(w.mT()); },
       kByOutputs},
      {"_grouped_mm without offs",
       {E, T, K},
       {E, N, K},
       [](const Tensor& x, const Tensor& w) {
         return at::_grouped_mm(x, w.transpose(1, 2), {}, {}, x.scalar_type());
       },
       kByOutputs},
      {"bmm of some experts",
       {2, T, K},
       {E, K, N},
       [](const Tensor& x, const Tensor& w) { return at::bmm(x, w.narrow(0, 1, 2)); },
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return equal_groups(x, w.narrow(0, 1, 2), c);
       }},
      {"bmm of a part of the outputs",
       {E, T, K},
       {E, K, N},
       [](const Tensor& x, const Tensor& w) { return at::bmm(x, w.chunk(2, 2)[1]); },
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return equal_groups(x, w.chunk(2, 2)[1], c);
       }},
  });
}

TEST(Batched, EinsumAsFarAsLibTorchMakesBmmOfIt) {
  const auto einsum = [](const char* equation) {
    return [equation](const Tensor& x, const Tensor& w) { return at::einsum(equation, {x, w}); };
  };
  expect_all({
      {"etk,ekn->etn", {E, T, K}, {E, K, N}, einsum("etk,ekn->etn"), kByInputs},
      {"etk,enk->etn", {E, T, K}, {E, N, K}, einsum("etk,enk->etn"), kByOutputs},
      {"ekn,etk->etn",
       {E, T, K},
       {E, K, N},
       [](const Tensor& x, const Tensor& w) {
         return at::einsum("ekn,etk->etn", {w, x});
       },
       kByInputs},
      {"betk,ekn->betn",
       {2, E, T, K},
       {E, K, N},
       einsum("betk,ekn->betn"),
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return equal_groups(x.transpose(0, 1).reshape({E, 2 * T, K}), w, c)
             .view({E, 2, T, N})
             .transpose(0, 1);
       }},
      // Every token with every expert is one product with all outputs of all experts.
      {"tk,enk->ten",
       {T, K},
       {E, N, K},
       einsum("tk,enk->ten"),
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return one_group(x, w.reshape({E * N, K}).t(), c).view({T, E, N});
       }},
      {"tk,ekn->etn",
       {T, K},
       {E, K, N},
       einsum("tk,ekn->etn"),
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return one_group(x, w.permute({1, 0, 2}).reshape({K, E * N}), c)
             .view({T, E, N})
             .transpose(0, 1);
       }},
  });
}

TEST(Batched, MatmulBroadcasts) {
  const auto matmul = [](const Tensor& x, const Tensor& w) { return at::matmul(x, w); };
  const auto every_expert = [](const Tensor& x, const Tensor& w, const Config& c) {
    return equal_groups(x.expand({E, T, K}), w, c);
  };
  expect_all({
      {"(T, K) with (E, K, N)", {T, K}, {E, K, N}, matmul, every_expert},
      {"(1, T, K) with (E, K, N)", {1, T, K}, {E, K, N}, matmul, every_expert},
      {"(K) with (E, K, N)",
       {K},
       {E, K, N},
       matmul,
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return equal_groups(x.expand({E, 1, K}), w, c).squeeze(1);
       }},
      {"(B, E, T, K) with (E, K, N)",
       {2, E, T, K},
       {E, K, N},
       matmul,
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return equal_groups(x.transpose(0, 1).reshape({E, 2 * T, K}), w, c)
             .view({E, 2, T, N})
             .transpose(0, 1);
       }},
      {"(B, 1, T, K) with (1, E, K, N)",
       {2, 1, T, K},
       {E, K, N},
       [](const Tensor& x, const Tensor& w) { return at::matmul(x, w.unsqueeze(0)); },
       [](const Tensor& x, const Tensor& w, const Config& c) {
         return equal_groups(x.expand({2, E, T, K}).transpose(0, 1).reshape({E, 2 * T, K}), w, c)
             .view({E, 2, T, N})
             .transpose(0, 1);
       }},
      {"one expert for a batch",
       {2, T, K},
       {1, K, N},
       matmul,
       [](const Tensor& x, const Tensor& w, const Config& c) { return one_group(x, w[0], c); }},
  });
}

TEST(Batched, WeightsOnTheLeft) {
  const auto transposed = [](const Tensor& x, const Tensor& w, const Config& c) {
    return equal_groups(x.transpose(1, 2), w.transpose(1, 2), c).transpose(1, 2);
  };
  expect_all({
      {"bmm",
       {E, K, 8},
       {E, N, K},
       [](const Tensor& x, const Tensor& w) { return at::bmm(w, x); },
       transposed},
      {"matmul",
       {E, K, 8},
       {E, N, K},
       [](const Tensor& x, const Tensor& w) { return at::matmul(w, x); },
       transposed},
      {"_grouped_mm without offs",
       {E, K, 8},
       {E, N, K},
       [](const Tensor& x, const Tensor& w) {
         return at::_grouped_mm(w, x, {}, {}, x.scalar_type());
       },
       transposed},
  });
}

TEST(Batched, BaddbmmScalesAndAdds) {
  for (const at::ScalarType dtype : dtypes()) {
    for (const Config& config : grouped_configs()) {
      const Tensor bias = normal({E, 1, N}, dtype, 3);
      expect_agreement(
          "baddbmm", [&](const Tensor& x, const Weights& w) { return at::baddbmm(bias, x, w[0]); },
          [&](const Tensor& x, const Weights& w) {
            return equal_groups(x, w[0], config) + bias.expand({E, T, N});
          },
          normal({E, T, K}, dtype), {normal({E, K, N}, dtype, 2)}, config);
      expect_agreement(
          "baddbmm with beta and alpha",
          [&](const Tensor& x, const Weights& w) { return at::baddbmm(bias, x, w[0], 0.5, 2); },
          [&](const Tensor& x, const Weights& w) {
            return equal_groups(x, w[0], config) * 2 + bias.expand({E, T, N}) * 0.5;
          },
          normal({E, T, K}, dtype), {normal({E, K, N}, dtype, 2)}, config);
    }
  }
}

TEST(Batched, ALinearWeightForEveryBatch) {
  for (const Config& config : linear_configs()) {
    expect_agreement(
        "bmm with an expanded weight",
        [&](const Tensor& x, const Weights& w) {
          return at::bmm(x, w[0].t().unsqueeze(0).expand({2, K, N}));
        },
        [&](const Tensor& x, const Weights& w) {
          return quantize_then_linear(x, w[0], {}, config);
        },
        normal({2, T, K}), {normal({N, K}, at::kBFloat16, 2)}, config);
    expect_agreement(
        "einsum btk,nk->btn",
        [&](const Tensor& x, const Weights& w) {
          return at::einsum("btk,nk->btn", {x, w[0]});
        },
        [&](const Tensor& x, const Weights& w) {
          return quantize_then_linear(x, w[0], {}, config);
        },
        normal({2, T, K}), {normal({N, K}, at::kBFloat16, 2)}, config);
  }
}

// ---- what has no meaning ----------------------------------------------------------
// What is said on stderr by a call whose result is LibTorch's own.
std::string said_by(const std::function<Tensor()>& call) {
  ::testing::internal::CaptureStderr();
  const Tensor y = call();
  const std::string said = ::testing::internal::GetCapturedStderr();
  const WithoutAtenHooks without;
  EXPECT_TRUE(same_bits(call(), y));
  return said;
}

TEST(Batched, MixedContractionsStayInHighPrecisionAndSaySo) {
  install_aten_hooks();
  const auto weight = [] {
    Tensor w = normal({E, K, N}, at::kFloat, 2);
    set_tag(w, grouped_configs()[0]);
    return w;
  };
  const Tensor mixture = normal({T, E}, at::kFloat);
  const Tensor x = normal({T, E, K}, at::kFloat);
  {
    const Tensor w = weight();  // weights mixed by a router's scores
    EXPECT_THAT(said_by([&] {
                  return at::einsum("te,ekn->tkn", {mixture, w});
                }),
                ::testing::HasSubstr("contracts over more than"));
  }
  {
    const Tensor w = weight();  // experts summed in the same contraction
    EXPECT_THAT(said_by([&] {
                  return at::einsum("tek,ekn->tn", {x, w});
                }),
                ::testing::HasSubstr("contracts over more than"));
  }
  {
    const Tensor w = weight();
    EXPECT_THAT(said_by([&] {
                  return at::addbmm(at::zeros({T, N}), x.transpose(0, 1).contiguous(), w);
                }),
                ::testing::HasSubstr("addbmm"));
  }
}

TEST(Batched, LibTorchRefusesWhatDoesNotFit) {
  install_aten_hooks();
  Tensor w = normal({E, K, N});
  set_tag(w, grouped_configs()[0]);
  const auto error = [&](const Tensor& x) { return error_of([&] { at::bmm(x, w); }); };
  const auto plain_error = [&](const Tensor& x) {
    const WithoutAtenHooks without;
    return error_of([&] { at::bmm(x, w); });
  };
  for (const Tensor& x :
       {normal({1, T, K}), normal({E, T, K + 1}), normal({E, T, K}, at::kFloat), normal({T, K})}) {
    EXPECT_NE(plain_error(x), "(no error)");
    EXPECT_EQ(plain_error(x), error(x));
  }
  EXPECT_EQ(at::bmm(normal({E, 0, K}), w).sizes(), (at::IntArrayRef{E, 0, N}));
}

}  // namespace
}  // namespace moe8
