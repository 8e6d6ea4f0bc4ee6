// SPDX-License-Identifier: BSD-3-Clause
// Weights made of converted weights by moving elements: cat, stack, chosen experts, copies. What
// cannot be converted says so, by a product and not before; and copies outlive set_data.
#include "convert/hooks/agree.h"
#include "moe8/quantize_model.h"

namespace moe8 {
namespace {

using at::Tensor;
using testing::equal_groups;
using testing::expect_agreement;
using testing::expect_equal;
using testing::grad_fn_of;
using testing::grouped_configs;
using ::testing::HasSubstr;
using testing::linear_configs;
using testing::normal;
using testing::offs_of;
using testing::one_group;
using testing::Product;
using testing::same_bits;
using testing::Weights;
using testing::with_dtype;

constexpr int64_t E = 3, T = 40, K = 64, N = 32;

Tensor offs() {
  return offs_of({7, 0, 33});
}

Tensor grouped(const Tensor& x, const Tensor& b, const Config& config) {
  return quantize_then_scaled_grouped_mm(x, b, offs(), with_dtype(config, at::kBFloat16));
}

void expect_all(const char* name, at::IntArrayRef shape, int count, const Product& style,
                const std::function<Tensor(const Tensor&, const Weights&, const Config&)>& function,
                const std::vector<Config>& configs) {
  for (const Config& config : configs) {
    Weights values;
    for (int i = 0; i < count; ++i) values.push_back(normal(shape, at::kBFloat16, 10 + i));
    expect_agreement(
        name, style, [&](const Tensor& x, const Weights& w) { return function(x, w, config); },
        normal({T, K}), values, config);
  }
}

// ---- made of several ----------------------------------------------------------------
TEST(Made, CatOfExperts) {
  expect_all(
      "w1 and w3, [E, N, K]", {E, N, K}, 2,
      [](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, at::cat({w[0], w[1]}, 1).transpose(1, 2), offs());
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return grouped(x, at::cat({w[0], w[1]}, 1).transpose(1, 2), c);
      },
      grouped_configs());
  expect_all(
      "w1 and w3, [E, K, N]", {E, K, N}, 2,
      [](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, at::cat({w[0], w[1]}, -1), offs());
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return grouped(x, at::cat({w[0], w[1]}, 2), c);
      },
      grouped_configs());
  expect_all(
      "transposed before, cut after", {E, N, K}, 2,
      [](const Tensor& x, const Weights& w) {
        const Tensor both = at::cat({w[0].transpose(1, 2), w[1].transpose(1, 2)}, 2);
        return at::_grouped_mm(x, both.narrow(2, 16, 32), offs());
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return grouped(x, at::cat({w[0], w[1]}, 1).transpose(1, 2).narrow(2, 16, 32), c);
      },
      grouped_configs());
  expect_all(
      "more experts", {1, K, N}, 3,
      [](const Tensor& x, const Weights& w) { return at::_grouped_mm(x, at::cat(w, 0), offs()); },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return grouped(x, at::cat(w, 0), c);
      },
      grouped_configs());
}

TEST(Made, CatOfLinears) {
  expect_all(
      "query, key and value", {N, K}, 3,
      [](const Tensor& x, const Weights& w) { return at::linear(x, at::cat(w)); },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return quantize_then_linear(x, at::cat(w), {}, c);
      },
      linear_configs());
}

TEST(Made, StackOfLinears) {
  const std::vector<Config> by_row{linear_configs()[0], linear_configs()[2]};
  expect_all(
      "each by its own tokens", {N, K}, 3,
      [](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, at::stack(w).transpose(1, 2), offs());
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return at::cat({quantize_then_linear(x.narrow(0, 0, 7), w[0], {}, c),
                        quantize_then_linear(x.narrow(0, 7, 0), w[1], {}, c),
                        quantize_then_linear(x.narrow(0, 7, 33), w[2], {}, c)});
      },
      by_row);
  expect_all(
      "bmm", {N, K}, 2,
      [](const Tensor& x, const Weights& w) {
        return at::bmm(x.view({2, T / 2, K}), at::stack(w, 1).permute({1, 2, 0}));
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return at::stack({quantize_then_linear(x.narrow(0, 0, T / 2), w[0], {}, c),
                          quantize_then_linear(x.narrow(0, T / 2, T / 2), w[1], {}, c)});
      },
      by_row);
}

TEST(Made, StackOfExperts) {
  expect_all(
      "slices of an expert weight", {E, K, N}, 1,
      [](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, at::stack({w[0][2], w[0][1], w[0][0]}), offs());
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return grouped(x, at::stack({w[0][2], w[0][1], w[0][0]}), c);
      },
      grouped_configs());
}

// ---- made of one ----------------------------------------------------------------------
TEST(Made, ChosenExperts) {
  const Tensor chosen = at::tensor({3, 1, 2});
  const auto function = [&](const Tensor& x, const Weights& w, const Config& c) {
    return grouped(x, w[0].index_select(0, chosen), c);
  };
  expect_all(
      "index_select", {4, K, N}, 1,
      [&](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, w[0].index_select(0, chosen), offs());
      },
      function, grouped_configs());
  expect_all(
      "index", {4, K, N}, 1,
      [&](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, w[0].index({chosen}), offs());
      },
      function, grouped_configs());
  expect_all(
      "one expert per token", {4, K, N}, 1,
      [&](const Tensor& x, const Weights& w) {
        const Tensor of_token = at::arange(T).remainder(4).view({T, 1});
        return at::einsum("tk,tskn->tsn", {x, w[0].index({of_token})}).squeeze(1);
      },
      [&](const Tensor& x, const Weights& w, const Config& c) {
        return equal_groups(x.unsqueeze(1), w[0].index({at::arange(T).remainder(4)}), c).squeeze(1);
      },
      grouped_configs());
}

TEST(Made, CopiesInOtherLayouts) {
  expect_all(
      "contiguous", {E, N, K}, 1,
      [](const Tensor& x, const Weights& w) {
        return at::_grouped_mm(x, w[0].transpose(1, 2).contiguous(), offs());
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return grouped(x, w[0].transpose(1, 2), c);
      },
      grouped_configs());
  expect_all(
      "reshape", {2, N, 2 * K}, 1,
      [](const Tensor& x, const Weights& w) {
        const Tensor copy = w[0].permute({2, 0, 1}).reshape({2 * K, 2 * N});
        return at::mm(x, copy.narrow(0, 0, K));
      },
      [](const Tensor& x, const Weights& w, const Config& c) {
        return one_group(x, w[0].permute({2, 0, 1}).reshape({2 * K, 2 * N}).narrow(0, 0, K), c);
      },
      grouped_configs());
}

// ---- what is no weight any more -------------------------------------------------------
Tensor converted(at::IntArrayRef shape, const Config& config, uint64_t seed = 5) {
  install_aten_hooks();
  Tensor w = normal(shape, at::kFloat, seed).requires_grad_();
  set_tag(w, config);
  return w;
}

std::string said_by(const std::function<void()>& call) {
  ::testing::internal::CaptureStderr();
  call();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Made, JoinedRowsSaySo) {
  const Tensor a = converted({N, K}, linear_configs()[0]),
               b = converted({N, K}, linear_configs()[0]);
  const Tensor x = normal({T, 2 * K}, at::kFloat);
  const Tensor joined = at::cat({a, b}, 1);
  EXPECT_THAT(said_by([&] { EXPECT_EQ(grad_fn_of(at::mm(x, joined.t())), "MmBackward0"); }),
              HasSubstr("put side by side"));
}

TEST(Made, OfOthersTooSaysSoAtTheProduct) {
  const Tensor a = converted({N, K}, linear_configs()[0]),
               c = converted({N, K}, linear_configs()[2]);
  const Tensor plain = normal({N, K}, at::kFloat), x = normal({T, K}, at::kFloat);
  Tensor joined;
  EXPECT_EQ(said_by([&] { joined = at::cat({a, plain}); }), "");
  EXPECT_THAT(said_by([&] { EXPECT_EQ(grad_fn_of(at::mm(x, joined.t())), "MmBackward0"); }),
              HasSubstr("not converted, or by another config"));
  EXPECT_THAT(said_by([&] {
                EXPECT_EQ(grad_fn_of(at::mm(x, at::cat({c, a}).t())), "MmBackward0");
              }),
              HasSubstr("not converted, or by another config"));
}

TEST(Made, FlattenedParametersSayNothing) {
  const Tensor a = converted({N, K}, linear_configs()[0]),
               c = converted({N, K}, linear_configs()[2]);
  EXPECT_EQ(
      said_by([&] {
        const Tensor flat = torch::nn::utils::parameters_to_vector({a, c, normal({N}, at::kFloat)});
        at::dot(flat, flat);
      }),
      "");
}

TEST(Made, RowsLookedUpAreInputsElsewhere) {
  // An embedding tied to a converted Linear: its rows are no weight where they meet another one.
  const Tensor table = converted({N, K}, linear_configs()[0]);
  const Tensor ids = at::tensor({3, 1, 3}), other = normal({K, 8}, at::kFloat);
  const auto looked_up = [&] {
    return std::vector<Tensor>{at::mm(table.index_select(0, ids), other),
                               at::mm(table.index({ids}), other),
                               at::mm(at::embedding(table, ids), other)};
  };
  const auto expect_plain = [&](const std::vector<Tensor>& got) {
    const WithoutAtenHooks without;
    expect_equal(looked_up(), got);
  };
  expect_plain(looked_up());
  const std::vector<Tensor> in_inference = [&] {
    const c10::InferenceMode inference;
    return looked_up();
  }();
  expect_plain(in_inference);
  // As the weight of a product they are converted.
  const Tensor x = normal({T, K}, at::kFloat);
  EXPECT_TRUE(same_bits(
      quantize_then_linear(x, table.detach().clone().index_select(0, ids), {}, linear_configs()[0]),
      at::linear(x, table.index_select(0, ids)).detach()));
}

// ---- lifetime -------------------------------------------------------------------------
TEST(Made, TagsGoWithTheirTensors) {
  using WeakTag = c10::weak_intrusive_ptr<c10::BackendMeta>;
  const Tensor w = converted({E, K, N}, grouped_configs()[0]);
  std::vector<WeakTag> tags;
  {
    const Tensor both = at::cat({w, w}, 2), copy = w.clone(),
                 chosen = w.narrow(0, 0, 2).contiguous(),
                 reshaped = w.transpose(1, 2).reshape({E * N, K});
    EXPECT_EQ(find_tag(both)->ids.size(), 1u);
    for (const Tensor& made : {both, copy, chosen, reshaped}) {
      ASSERT_TRUE(find_tag(made));
      tags.emplace_back(made.unsafeGetTensorImpl()->get_backend_meta_intrusive_ptr());
    }
  }
  for (const WeakTag& tag : tags) EXPECT_TRUE(tag.expired());
}

// ---- set_data ---------------------------------------------------------------------------
struct Experts : torch::nn::Cloneable<Experts> {
  Tensor w;
  Experts() { reset(); }
  void reset() override { w = register_parameter("w", torch::randn({E, K, N})); }
};

template <typename M>
std::shared_ptr<M> clone_of(const M& module) {
  return std::dynamic_pointer_cast<M>(module.clone());
}

TEST(SetData, ClonesKeepTheirConversion) {
  const Config config = linear_configs()[0];
  const Tensor x = normal({4, K}, at::kFloat);
  const auto expect_low = [&](torch::nn::LinearImpl& m) {
    const Tensor plain = m.weight.detach().contiguous().to(at::kDouble).to(at::kFloat);
    clear_tag(plain);
    EXPECT_TRUE(same_bits(quantize_then_linear(x, plain, {}, config), m.forward(x).detach()));
  };
  torch::nn::Linear original(torch::nn::LinearOptions(K, N).bias(false));
  quantize_(*original, config);
  const auto copy = clone_of(*original), second = clone_of(*copy), unused = clone_of(*second);
  torch::nn::utils::vector_to_parameters(torch::randn({K * N}), copy->parameters());
  expect_low(*copy);
  second->weight.set_data(torch::randn({N, K}));
  expect_low(*second);
  expect_low(*clone_of(*second));
  unused->to(at::kDouble);
  unused->to(at::kFloat);
  expect_low(*unused);
  dequantize_(*second);
  EXPECT_FALSE(find_tag(second->weight));
  expect_low(*copy);
}

TEST(SetData, ClonesOfExpertsKeepTheirConversion) {
  Experts experts;
  quantize_(experts, {{"w", grouped_configs()[0]}});
  const auto other = clone_of(experts);
  other->w.set_data(torch::randn({E, K, N}));
  other->to(at::kBFloat16);
  const Tensor x = normal({T, K});
  EXPECT_TRUE(same_bits(
      grouped(x, other->w.detach().to(at::kDouble).to(at::kBFloat16), grouped_configs()[0]),
      at::_grouped_mm(x, other->w, offs()).detach()));
}

TEST(SetData, AParameterMadeOfACopyKeepsItsConversion) {
  const Tensor w = converted({N, K}, linear_configs()[0]);
  Tensor parameter = w.detach().clone().requires_grad_();
  parameter.set_data(normal({N, K}, at::kFloat, 6));
  EXPECT_TRUE(find_tag(parameter));
}

}  // namespace
}  // namespace moe8
