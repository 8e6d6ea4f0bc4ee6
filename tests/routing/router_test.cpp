// SPDX-License-Identifier: BSD-3-Clause
// route_tokens against a loop over tokens, its gradient, and misuse.
#include <torch/torch.h>

#include "moe8/routing.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;

at::Tensor scores_of(const at::Tensor& logits, const RouterOptions& o, const at::Tensor& experts) {
  const at::Tensor p =
      o.score_function == ScoreFunction::SIGMOID ? logits.sigmoid() : logits.softmax(1);
  at::Tensor chosen = p.gather(1, experts);
  if (o.normalize) chosen = chosen / chosen.sum(1, true);
  return chosen * o.scale;
}

TEST(RouteTokens, ScoresAreThoseOfTheChosen) {
  torch::manual_seed(1);
  const at::Tensor bias = at::randn({7}) * 0.3;
  for (const ScoreFunction function : {ScoreFunction::SOFTMAX, ScoreFunction::SIGMOID}) {
    for (const bool normalize : {false, true}) {
      for (const bool has_bias : {false, true}) {
        const RouterOptions o{3, function, normalize, 1.5};
        const at::Tensor logits = at::randn({40, 7}).requires_grad_();
        const Routing r = has_bias ? route_tokens(logits, o, bias) : route_tokens(logits, o);
        const at::Tensor p =
            function == ScoreFunction::SIGMOID ? logits.sigmoid() : logits.softmax(1);
        const at::Tensor preference = has_bias ? p + bias : p;
        EXPECT_TRUE(same_bits(std::get<1>(preference.topk(3, 1)), r.experts));
        const at::Tensor expected = scores_of(logits.to(at::kDouble), o, r.experts);
        EXPECT_TRUE(at::allclose(expected.to(at::kFloat), r.scores, 1e-5, 1e-7));
        EXPECT_TRUE(same_bits(at::bincount(r.experts.flatten(), {}, 7), r.tokens_per_expert));
        EXPECT_EQ(r.order.rows(), 120);
        const at::Tensor up = at::randn({40, 3});
        const auto got = torch::autograd::grad({r.scores}, {logits}, {up});
        const auto exact = torch::autograd::grad({expected}, {logits}, {up.to(at::kDouble)});
        EXPECT_TRUE(at::allclose(exact[0], got[0], 1e-4, 1e-6));
      }
    }
  }
}

TEST(RouteTokens, SoftmaxOverTheChosenIsNormalizedSoftmax) {
  const at::Tensor logits = at::randn({9, 6});
  const Routing r = route_tokens(logits, {.top_k = 2, .normalize = true});
  EXPECT_TRUE(at::allclose(logits.gather(1, r.experts).softmax(1), r.scores, 1e-5, 1e-7));
}

TEST(RouteTokens, Bfloat16IsWidened) {
  const at::Tensor logits = at::randn({9, 6}).to(at::kBFloat16);
  const Routing r = route_tokens(logits, {.top_k = 6});
  EXPECT_EQ(r.scores.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(r.scores.sum(1), at::ones({9})));
}

TEST(RouteTokens, MisuseIsToldInWords) {
  const auto message = [](const at::Tensor& logits, const RouterOptions& o,
                          const std::optional<at::Tensor>& bias = std::nullopt) {
    return error_of([&] { route_tokens(logits, o, bias); });
  };
  const at::Tensor logits = at::zeros({4, 3});
  EXPECT_EQ(message(logits, {}), "(no error)");
  EXPECT_EQ(message(logits, {}, at::Tensor()), "(no error)");
  EXPECT_THAT(message(logits[0], {}), HasSubstr("[route_tokens] logits: expected [T, E]"));
  EXPECT_THAT(message(logits.to(at::kHalf), {}), HasSubstr("bfloat16 or float32"));
  EXPECT_THAT(message(logits, {.top_k = 4}),
              HasSubstr("options.top_k: expected 1 to 3, the experts there are, got 4"));
  EXPECT_THAT(message(logits, {.top_k = 0}), HasSubstr("got 0"));
  EXPECT_THAT(message(logits, {.score_function = static_cast<ScoreFunction>(9)}),
              HasSubstr("expected softmax or sigmoid"));
  EXPECT_THAT(message(logits, {}, at::zeros({4})),
              HasSubstr("bias: expected floating-point [3] on cpu, got Float [4] on cpu"));
}

}  // namespace
}  // namespace moe8
