// SPDX-License-Identifier: BSD-3-Clause
// A router: choices that no other expert beats, their scores and gradients, ties, NaN.
#include "cuda/nn/route.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cuda/nn_check/check.h"
#include "reference/model.h"

namespace moe8::cuda {
namespace {

struct Case {
  int64_t tokens, experts, top_k;
  ScoreFunction function;
  bool normalize;
  bool has_bias;
  FloatType type;
};

std::string describe(const Case& c) {
  return "route " + std::to_string(c.tokens) + " x " + std::to_string(c.experts) + " top " +
         std::to_string(c.top_k) +
         (c.function == ScoreFunction::SIGMOID ? " sigmoid" : " softmax") +
         (c.normalize ? " normalized" : "") + (c.has_bias ? " bias " : " ") + name_of(c.type);
}

std::vector<int64_t> integers(const DeviceBytes& buffer, int64_t count) {
  const Bytes bytes = buffer.host();
  std::vector<int64_t> values(static_cast<size_t>(count));
  if (count > 0) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(int64_t));
  return values;
}

/// Distinct experts, the best first, none left out that is better.
void expect_best(const std::string& what, const std::vector<double>& p, const Numbers& bias,
                 bool has_bias, const std::vector<int64_t>& chosen) {
  constexpr double kClose = 2e-6;
  const auto preference = [&](int64_t e) {
    return p[static_cast<size_t>(e)] + (has_bias ? bias.at(e) : 0);
  };
  std::vector<bool> taken(p.size());
  double last = INFINITY;
  for (const int64_t e : chosen) {
    const bool is_new =
        e >= 0 && e < static_cast<int64_t>(p.size()) && !taken[static_cast<size_t>(e)];
    expect(is_new, what + ": an expert twice, or none");
    if (!is_new) return;
    taken[static_cast<size_t>(e)] = true;
    expect(!(preference(e) > last + kClose), what + ": not the best first");
    last = preference(e);
  }
  for (size_t e = 0; e < p.size(); ++e) {
    if (!taken[e]) {
      expect(!(preference(static_cast<int64_t>(e)) > last + kClose), what + ": a better one left");
    }
  }
}

void check_case(const Case& c, std::mt19937& rng) {
  const std::string what = describe(c);
  Numbers logits(c.type, c.tokens * c.experts, rng, 2);
  Numbers bias(FloatType::F32, c.experts, rng, 0.1f);
  Numbers grad(FloatType::F32, c.tokens * c.top_k, rng);
  Numbers scores(FloatType::F32, c.tokens * c.top_k), to_logits(c.type, c.tokens * c.experts);
  DeviceBytes chosen(static_cast<size_t>(c.tokens * c.top_k) * sizeof(int64_t));
  const float scale = 1.5f;
  const RouteInputs inputs{.logits = logits.device(),
                           .type = c.type,
                           .tokens = c.tokens,
                           .experts = c.experts,
                           .top_k = c.top_k,
                           .score_function = c.function,
                           .normalize = c.normalize,
                           .scale = scale};
  run_twice(what, {&scores}, [&] {
    RouteArgs args{};
    static_cast<RouteInputs&>(args) = inputs;
    args.bias = c.has_bias ? static_cast<const float*>(bias.device()) : nullptr;
    args.chosen = chosen.as<int64_t>();
    args.scores = static_cast<float*>(scores.device());
    return launch_route(args, nullptr);
  });
  run_twice(what + " backward", {&to_logits}, [&] {
    RouteBackwardArgs args{};
    static_cast<RouteInputs&>(args) = inputs;
    args.chosen = chosen.as<int64_t>();
    args.grad = static_cast<const float*>(grad.device());
    args.grad_logits = to_logits.device();
    return launch_route_backward(args, nullptr);
  });
  expect(chosen.is_intact(), what + ": wrote outside the choices");
  const std::vector<int64_t> all = integers(chosen, c.tokens * c.top_k);
  std::vector<Expected> of_scores, of_logits;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const std::vector<double> p = with_numbers(logits, [&](const auto* x) {
      return reference::expert_scores(x + t * c.experts, c.experts, c.function);
    });
    const std::vector<int64_t> mine(all.begin() + t * c.top_k, all.begin() + (t + 1) * c.top_k);
    expect_best(what, p, bias, c.has_bias, mine);
    if (failures > 0) return;
    std::vector<double> upstream;
    double most = 0;
    for (int64_t j = 0; j < c.top_k; ++j) {
      upstream.push_back(grad.at(t * c.top_k + j));
      most = std::max(most, std::abs(upstream.back()));
    }
    for (const double s : reference::route_scores(p, mine, c.normalize, scale)) {
      of_scores.push_back({s, 4e-6 * std::abs(s)});
    }
    for (const double d :
         reference::route_gradient(p, mine, upstream, c.function, c.normalize, scale)) {
      of_logits.push_back({d, 1e-5 * most});
    }
  }
  expect_close(what, scores, of_scores);
  expect_close(what + " of logits", to_logits, of_logits);
}

/// Of equal experts the first; NaN before all others.
void check_order() {
  std::mt19937 rng(3);
  Numbers logits(FloatType::F32, int64_t{3} * 40, rng), scores(FloatType::F32, int64_t{3} * 3);
  for (int64_t e = 0; e < 40; ++e) {
    logits.set(e, e % 2 == 0 ? 1.0f : 2.0f);
    logits.set(40 + e, e == 35 || e == 7 ? NAN : 0.0f);
    logits.set(80 + e, e == 39 ? -1.0f : -INFINITY);
  }
  DeviceBytes chosen(9 * sizeof(int64_t));
  RouteArgs args{};
  args.logits = logits.device();
  args.type = FloatType::F32;
  args.tokens = 3, args.experts = 40, args.top_k = 3, args.scale = 1;
  args.score_function = ScoreFunction::SIGMOID;
  args.chosen = chosen.as<int64_t>();
  args.scores = static_cast<float*>(scores.device());
  require(launch_route(args, nullptr), "route, order");
  require(cudaDeviceSynchronize(), "route, order");
  expect(integers(chosen, 9) == std::vector<int64_t>{1, 3, 5, 7, 35, 0, 39, 0, 1},
         "route: the order of equal experts");
}

}  // namespace

void check_route(std::mt19937& rng, int random_shapes) {
  check_order();
  std::vector<std::array<int64_t, 3>> shapes{
      {0, 8, 2},   {1, 1, 1},    {7, 32, 4},    {65, 33, 33 - 1}, {9, 64, 8}, {31, 128, 6},
      {5, 256, 8}, {3, 512, 32}, {300, 31, 31}, {16, 100, 1},     {2, 3, 3}};
  for (int i = 0; i < random_shapes; ++i) {
    const auto experts = static_cast<int64_t>(1 + rng() % kMostRoutedExperts);
    const auto most = static_cast<uint32_t>(std::min(experts, kMostChosen));
    shapes.push_back(
        {static_cast<int64_t>(rng() % 40), experts, static_cast<int64_t>(1 + rng() % most)});
  }
  for (const auto& [tokens, experts, top_k] : shapes) {
    for (const ScoreFunction function : {ScoreFunction::SOFTMAX, ScoreFunction::SIGMOID}) {
      for (const bool option : {false, true}) {
        for (const FloatType type : kTypes) {
          check_case({tokens, experts, top_k, function, option, !option || rng() % 2 == 0, type},
                     rng);
        }
      }
    }
  }
}

}  // namespace moe8::cuda
