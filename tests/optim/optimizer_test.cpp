// SPDX-License-Identifier: BSD-3-Clause
// The kernels against the reference, the optimizer against LibTorch's AdamW, and what it promises
// of gradients, norms that are not finite, and its state.
#include "moe8/optimizer.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <utility>

#include "cpu/adamw.h"
#include "reference/adamw.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;

// ---- kernels ------------------------------------------------------------------
std::vector<uint8_t> random_numbers(FloatType type, int64_t count, bool positive,
                                    std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<uint8_t> bytes;
  const auto append = [&](auto value) {
    const auto* first = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), first, first + sizeof value);
  };
  for (int64_t i = 0; i < count; ++i) {
    const float scale = std::exp2(static_cast<float>(static_cast<int>(rng() % 60) - 40));
    const float value = i % 17 == 3 ? 0.0f : normal(rng) * scale;
    const float kept = positive ? std::abs(value) : value;
    type == FloatType::F32 ? append(kept) : append(from_float<BFloat16>(kept));
  }
  return bytes;
}

// What a step reads and writes.
struct Memory {
  Memory(FloatType grad_type, FloatType weight_type, FloatType moment_type, int64_t n,
         std::mt19937& rng)
      : grad(random_numbers(grad_type, n, false, rng)),
        weight(random_numbers(weight_type, n, false, rng)),
        copy(static_cast<size_t>(2 * n)),
        first(random_numbers(moment_type, n, false, rng)),
        second(random_numbers(moment_type, n, true, rng)),
        types{grad_type, weight_type, moment_type} {}

  AdamWArgs args(const AdamWRule& rule, const StepScalars& scalars, bool copies) {
    return {rule,          scalars,
            types[0],      types[1],
            types[2],      grad.data(),
            weight.data(), copies ? reinterpret_cast<BFloat16*>(copy.data()) : nullptr,
            first.data(),  second.data()};
  }
  bool operator==(const Memory&) const = default;

  std::vector<uint8_t> grad, weight, copy, first, second;
  std::array<FloatType, 3> types;
};

TEST(AdamWKernels, EqualTheReferenceInEveryInstructionSet) {
  std::mt19937 rng(1);
  const AdamWRule rule = AdamWRule::of(0.9, 0.999, 1e-8, 1.0);
  for (const FloatType grad : {FloatType::BF16, FloatType::F32}) {
    for (const FloatType weight : {FloatType::BF16, FloatType::F32}) {
      for (const FloatType moment : {FloatType::BF16, FloatType::F32}) {
        AdamWClock clock;
        const float norm = 3.5f;
        for (int step = 0; step < 3; ++step) begin_step(clock, rule, 1e-3, 0.1, &norm, 7);
        const StepScalars scalars = begin_step(clock, rule, 1e-3, 0.1, &norm, 7);
        Memory expected(grad, weight, moment, 1003, rng);
        const Memory before = expected;
        reference::adamw(expected.args(rule, scalars, weight == FloatType::F32), 5, 1003);
        for (const cpu::Isa isa : {cpu::Isa::PORTABLE, cpu::Isa::AVX2, cpu::Isa::AVX512}) {
          if (!cpu::has_isa(isa)) continue;
          Memory actual = before;
          cpu::adamw(actual.args(rule, scalars, weight == FloatType::F32), 5, 400, isa);
          cpu::adamw(actual.args(rule, scalars, weight == FloatType::F32), 400, 1003, isa);
          EXPECT_TRUE(actual == expected) << to_string(isa);
        }
      }
    }
  }
}

TEST(AdamWKernels, SumsEqualTheReferenceInEveryInstructionSet) {
  std::mt19937 rng(2);
  for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
    for (const int64_t n : {1, 7, 2047, 2048, 2049, 9000, 32768}) {
      const auto x = random_numbers(type, n, false, rng);
      const float expected = reference::sum_of_squares(x.data(), type, n);
      for (const cpu::Isa isa : {cpu::Isa::PORTABLE, cpu::Isa::AVX2, cpu::Isa::AVX512}) {
        if (!cpu::has_isa(isa)) continue;
        EXPECT_EQ(cpu::sum_of_squares(x.data(), type, n, isa), expected) << n;
      }
    }
  }
}

TEST(AdamWKernels, StochasticRoundingIsRightOnAverage) {
  const float x = 1.0f + 0.3f / 128;  // 0.3 of the way to the next bf16 number
  double sum = 0;
  constexpr int kCount = 1 << 16;
  for (int i = 0; i < kCount; ++i) {
    const BFloat16 rounded = to_bf16_stochastic(x, rounding_bits(123, i) >> 16);
    EXPECT_TRUE(to_float(rounded) == 1.0f || to_float(rounded) == 1.0f + 1.0f / 128);
    sum += to_float(rounded);
  }
  EXPECT_NEAR((sum / kCount - 1) * 128, 0.3, 0.01);  // five standard deviations
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_float(to_bf16_stochastic(infinity, 0xFFFF)), infinity);
  EXPECT_TRUE(std::isnan(to_float(to_bf16_stochastic(std::nanf(""), 0xFFFF))));
}

// ---- the optimizer --------------------------------------------------------------
at::Tensor parameter(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::randn(sizes).to(dtype).requires_grad_();
}

TEST(Optimizer, EqualsLibTorchsAdamW) {
  at::manual_seed(3);
  at::Tensor ours = parameter({64, 72}, at::kFloat);
  at::Tensor theirs = ours.detach().clone().requires_grad_();
  Optimizer optimizer({{.name = "w", .tensor = ours, .weight_decay = 0.1}},
                      {.beta2 = 0.95, .max_grad_norm = 0});
  torch::optim::AdamW adamw(
      {theirs}, torch::optim::AdamWOptions(1e-2).betas({0.9, 0.95}).eps(1e-8).weight_decay(0.1));
  optimizer.set_learning_rate(1e-2);
  for (int step = 1; step <= 30; ++step) {
    const at::Tensor before = theirs.detach().clone();
    ours.mutable_grad() = at::randn({64, 72});
    theirs.mutable_grad() = ours.grad().clone();
    optimizer.clip_gradients();
    optimizer.step();
    adamw.step();
    // Each rounds a handful of operations: 4 units of the larger of weight and update per step.
    const at::Tensor size = at::maximum(theirs.detach().abs(), before.abs()).clamp_min(0.02);
    const at::Tensor error = (ours - theirs).detach().abs() / (size * std::exp2(-23));
    EXPECT_LE(error.max().item<double>(), 4.0 * step) << step;
  }
}

TEST(Optimizer, ClipsInTheStep) {
  at::manual_seed(4);
  at::Tensor a = parameter({40, 50}, at::kFloat), b = a.detach().clone().requires_grad_();
  const at::Tensor grad = at::randn({40, 50});
  Optimizer clipped({{.name = "w", .tensor = a}}, {.max_grad_norm = 0.5});
  Optimizer plain({{.name = "w", .tensor = b}}, {.max_grad_norm = 0});
  a.mutable_grad() = grad.clone();
  const double norm = grad.to(at::kDouble).norm().item<double>();
  EXPECT_NEAR(clipped.clip_gradients().item<double>(), norm, norm * 1e-7);
  b.mutable_grad() = grad * (0.5f / (static_cast<float>(norm) + 1e-6f));
  for (Optimizer* optimizer : {&clipped, &plain}) {
    optimizer->set_learning_rate(0.1);
    optimizer->step();
  }
  EXPECT_LE((a - b).abs().max().item<double>(), 1e-6);
  const auto moments = clipped.state();
  EXPECT_NEAR(moments[0].second.norm().item<double>(), 0.1 * 0.5, 1e-6);
}

TEST(Optimizer, ANormThatIsNotFiniteChangesNothing) {
  for (const UpdateRule rule : {UpdateRule::ADAMW, UpdateRule::MUON}) {
    at::Tensor w = parameter({8, 8}, at::kBFloat16);
    Optimizer optimizer({{.name = "w", .tensor = w, .weight_decay = 0.1, .rule = rule}});
    optimizer.set_learning_rate(0.1);
    const auto step = [&](const at::Tensor& grad) {
      w.mutable_grad() = grad.to(at::kBFloat16);
      optimizer.accumulate();
      const double norm = optimizer.clip_gradients().item<double>();
      optimizer.step();
      return norm;
    };
    EXPECT_TRUE(std::isfinite(step(at::randn({8, 8}))));
    const at::Tensor before = w.detach().clone();
    std::map<std::string, at::Tensor> state;
    for (const auto& [name, tensor] : optimizer.state()) state[name] = tensor.clone();
    for (const double bad : {INFINITY, -INFINITY, NAN}) {
      at::Tensor grad = at::randn({8, 8});
      grad[3][4] = bad;
      EXPECT_FALSE(std::isfinite(step(grad)));
    }
    EXPECT_TRUE(same_bits(before, w.detach()));
    for (const auto& [name, tensor] : optimizer.state()) {
      EXPECT_TRUE(same_bits(state.at(name), tensor)) << name;
    }
    step(at::randn({8, 8}));
    EXPECT_FALSE(same_bits(before, w.detach()));
  }
}

TEST(Optimizer, OneBackwardNeedsNoFloat32Gradient) {
  at::Tensor w = parameter({8, 8}, at::kBFloat16);
  Optimizer optimizer({{.name = "w", .tensor = w}});
  const at::Tensor grad = at::randn({8, 8}).to(at::kBFloat16);
  w.mutable_grad() = grad;
  optimizer.accumulate();
  EXPECT_FALSE(w.grad().defined());
  EXPECT_EQ(optimizer.stepped()[0].grad().data_ptr(), grad.data_ptr());
  for (int more = 0; more < 2; ++more) {
    w.mutable_grad() = grad.clone();
    optimizer.accumulate();
  }
  EXPECT_TRUE(same_bits(grad.to(at::kFloat) + grad.to(at::kFloat) + grad.to(at::kFloat),
                        optimizer.stepped()[0].grad()));
}

// Trains `steps` steps on gradients that depend on the step alone.
void train(Optimizer& optimizer, std::vector<at::Tensor>& parameters, int first, int last) {
  for (int step = first; step < last; ++step) {
    at::manual_seed(static_cast<uint64_t>(step));
    for (at::Tensor& p : parameters) p.mutable_grad() = at::randn(p.sizes()).to(p.scalar_type());
    optimizer.accumulate();
    optimizer.clip_gradients();
    optimizer.set_learning_rate(1e-2 / (step + 1));
    optimizer.step();
  }
}

TEST(Optimizer, GoesOnFromItsStateBitForBit) {
  for (const MomentDtype moments :
       {MomentDtype::LIKE_WEIGHTS, MomentDtype::FLOAT32, MomentDtype::BF16}) {
    for (const bool masters : {true, false}) {
      at::manual_seed(6);
      std::vector<at::Tensor> a{parameter({8, 12}, at::kBFloat16),
                                parameter({2, 6, 4}, at::kBFloat16),
                                parameter({33}, at::kBFloat16)};
      const auto made = [&](std::vector<at::Tensor>& list) {
        return Optimizer(
            {{"m", list[0], 0.1}, {"e", list[1], 0.1, UpdateRule::MUON}, {"v", list[2]}},
            {.masters = masters, .moments = moments});
      };
      Optimizer first = made(a);
      train(first, a, 0, 4);
      std::vector<at::Tensor> b;
      b.reserve(a.size());
      for (const at::Tensor& p : a) b.push_back(p.detach().clone().requires_grad_());
      std::map<std::string, at::Tensor> saved;
      for (const auto& [name, tensor] : first.state()) saved[name] = tensor.clone();
      if (moments == MomentDtype::BF16) {
        EXPECT_EQ(saved.at("exp_avg_sq.m").scalar_type(), at::kBFloat16);
      }
      EXPECT_EQ(saved.at("steps.v").item<int64_t>(), 4);
      Optimizer second = made(b);
      second.restore([&](const std::string& name, const at::Tensor& like) {
        const auto found = saved.find(name);
        if (found == saved.end()) return at::Tensor();
        EXPECT_EQ(found->second.scalar_type(), like.scalar_type()) << name;
        EXPECT_EQ(found->second.sizes(), like.sizes()) << name;
        return found->second;
      });
      train(first, a, 4, 8);
      train(second, b, 4, 8);
      for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i].detach(), b[i].detach()));
      const auto x = first.state(), y = second.state();
      ASSERT_EQ(x.size(), y.size());
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_TRUE(same_bits(x[i].second, y[i].second)) << x[i].first;
      }
    }
  }
}

// The mean of squares must be able to fall: to nearest, 0.999 v is v again in bf16.
TEST(Optimizer, PartsStepAsTheWholeBitForBit) {
  // Two optimizers of a part of each of two parameters, against one of the whole.
  constexpr int64_t kRows = 4, kCut = 1;
  const auto parameters = [] {
    at::manual_seed(3);
    return std::vector<at::Tensor>{at::randn({kRows, kNormChunk}).to(at::kBFloat16),
                                   at::randn({kRows, kNormChunk}).to(at::kBFloat16)};
  };
  const OptimizerOptions options{.max_grad_norm = 0.5, .moments = MomentDtype::BF16};
  const auto whole = parameters(), parts = parameters();
  Optimizer one({{.name = "a", .tensor = whole[0]}, {.name = "b", .tensor = whole[1]}}, options);
  std::vector<Optimizer> several;
  for (const auto& [first, rows] : {std::pair{int64_t{0}, kCut}, {kCut, kRows - kCut}}) {
    std::vector<OptimizedParameter> list;
    for (size_t i = 0; i < 2; ++i) {
      list.push_back({.name = i == 0 ? "a" : "b",
                      .tensor = parts[i].narrow(0, first, rows),
                      .number = static_cast<int64_t>(i),
                      .first_element = first * kNormChunk});
    }
    several.emplace_back(std::move(list), options);
  }
  for (int step = 0; step < 3; ++step) {
    for (size_t i = 0; i < 2; ++i) {
      const at::Tensor grad = at::randn({kRows, kNormChunk}).to(at::kBFloat16);
      one.stepped()[i].mutable_grad() = grad;
      several[0].stepped()[i].mutable_grad() = grad.narrow(0, 0, kCut);
      several[1].stepped()[i].mutable_grad() = grad.narrow(0, kCut, kRows - kCut);
    }
    const at::Tensor norm = one.clip_gradients();
    for (Optimizer* optimizer : {&one, several.data(), &several[1]}) {
      if (optimizer != &one) optimizer->clip_gradients(norm);
      optimizer->set_learning_rate(1e-2);
      optimizer->step();
    }
  }
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(whole[i], parts[i]));
}

TEST(Optimizer, MomentsInBf16ForgetOldGradients) {
  at::Tensor w = parameter({1000}, at::kFloat);
  Optimizer optimizer({{.name = "w", .tensor = w}},
                      {.beta2 = 0.999, .max_grad_norm = 0, .moments = MomentDtype::BF16});
  optimizer.set_learning_rate(0);
  for (int step = 0; step < 1001; ++step) {
    w.mutable_grad() = step == 0 ? at::ones({1000}) : at::zeros({1000});
    optimizer.step();
  }
  const double mean = optimizer.state()[1].second.to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(mean / (0.001 * std::pow(0.999, 1000)), 1, 0.02);
}

TEST(Optimizer, SaysWhatItDoesNotTake) {
  const auto error = [](std::vector<OptimizedParameter> parameters) {
    return error_of([&] { Optimizer optimizer(std::move(parameters)); });
  };
  EXPECT_THAT(error({}), HasSubstr("[optimizer] parameters: expected at least one"));
  EXPECT_THAT(error({{.name = "w", .tensor = at::zeros({2}, at::kDouble)}}),
              HasSubstr("[optimizer] w: expected float32 or bfloat16"));
  EXPECT_THAT(error({{.name = "w", .tensor = at::zeros({2, 3}).t()}}),
              HasSubstr("expected a contiguous tensor"));
  EXPECT_THAT(error({{.name = "w", .tensor = at::zeros({2}), .rule = UpdateRule::MUON}}),
              HasSubstr("expected a matrix or a stack of them for Muon"));
}

}  // namespace
}  // namespace moe8
