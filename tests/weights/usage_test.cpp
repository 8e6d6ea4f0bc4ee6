// SPDX-License-Identifier: BSD-3-Clause
// Converted weights that do not train in low precision are noticed, by name: at the end of the
// backward that reached them, and by check_conversion() at any time.
#include "weights/usage.h"

#include <torch/torch.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "convert/aten_hooks.h"
#include "moe8/linear.h"
#include "moe8/quantize_model.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

using at::Tensor;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::wide_normal;
namespace nn = torch::nn;

const Config kLinear = recipe("mxfp8_emulated");
const Config kExperts = recipe("mxfp8_rceil");
const QuantizeOptions kError{.unused = Unused::ERROR};

// Two linears and two stacks of experts. Which of them a forward uses, and how, is each test's.
struct Model : nn::Module {
  nn::Linear first{register_module("first", nn::Linear(nn::LinearOptions(64, 64).bias(false)))};
  nn::Linear second{register_module("second", nn::Linear(nn::LinearOptions(64, 64).bias(false)))};
  Tensor experts{register_parameter("experts", wide_normal({2, 64, 64}, at::kFloat, 1, 1))};
};

Tensor input() {
  return wide_normal({6, 64}, at::kFloat, 3, 1);
}

// W * 1: a tensor that is computed from the weight, by an operation that is no product.
Tensor scaled(const Tensor& weight) {
  return weight * torch::ones({1});
}

std::string said(const std::function<void()>& call) {
  ::testing::internal::CaptureStderr();
  call();
  return ::testing::internal::GetCapturedStderr();
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

Use use_of(const nn::Module& model, const std::string& fqn) {
  for (const WeightUse& weight : check_conversion(model).weights) {
    if (weight.fqn == fqn) return weight.use;
  }
  ADD_FAILURE() << fqn << " is not converted";
  return Use::NONE;
}

// ---- at the end of a backward -------------------------------------------------
TEST(Unused, AModelThatUsesItsWeightsIsNotMentioned) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  EXPECT_EQ(said([&] {
              for (int step = 0; step < 3; ++step) {
                model.second(at::relu(model.first(input()))).sum().backward();
              }
            }),
            "");
  EXPECT_EQ(use_of(model, "first.weight"), Use::LOW_PRECISION);
}

TEST(Unused, OneMessageNamesAllWithShapeAndRemedyOnce) {
  Model model;
  quantize_(model, {{"re:first|second", kLinear}, {"experts", kExperts}});
  const auto step = [&] {
    const Tensor x = at::mm(input(), scaled(model.first->weight));
    at::mm(x, scaled(model.experts)[0]).sum().backward();
  };
  const std::string text = said(step);
  EXPECT_EQ(count(text, "[quantize_]"), 1u) << text;
  EXPECT_THAT(text,
              AllOf(HasSubstr("first.weight (64, 64)"), HasSubstr("experts (2, 64, 64)"),
                    HasSubstr("W * scale"), HasSubstr("none of 2: "), Not(HasSubstr("second"))));
  EXPECT_EQ(said(step), "");
}

TEST(Unused, AnErrorComesFromEveryBackwardThatReachesTheWeight) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  const auto step = [&] { at::mm(input(), scaled(model.first->weight)).sum().backward(); };
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(error_of(step), AllOf(HasSubstr("[quantize_] unused: expected"),
                                      HasSubstr("first.weight (64, 64)")));
  }
  // Its gradient is there, and the other weight trains.
  EXPECT_TRUE(model.first->weight.grad().defined());
  EXPECT_EQ(error_of([&] { model.second(input()).sum().backward(); }), "(no error)");
  // Used at last: no error any more.
  EXPECT_EQ(error_of([&] { model.first(input()).sum().backward(); }), "(no error)");
  EXPECT_EQ(error_of(step), "(no error)");
}

TEST(Unused, IgnoreSaysNothingAndCheckConversionKnows) {
  Model model;
  quantize_(model, kLinear, is_linear, {.unused = Unused::IGNORE});
  EXPECT_EQ(said([&] { at::mm(input(), scaled(model.first->weight)).sum().backward(); }), "");
  EXPECT_EQ(use_of(model, "first.weight"), Use::NONE);
}

TEST(Unused, WeightsThatAStepDoesNotNeedAreNotJudgedYet) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  for (int i = 0; i < 3; ++i) model.first(input()).sum().backward();
  EXPECT_THAT(error_of([&] { at::mm(input(), scaled(model.second->weight)).sum().backward(); }),
              AllOf(HasSubstr("second.weight"), Not(HasSubstr("first"))));
}

TEST(Unused, GradientsThatAreAskedForCountAsTheyDoInBackward) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  const Tensor loss = at::mm(input(), scaled(model.first->weight)).sum();
  EXPECT_THAT(error_of([&] { torch::autograd::grad({loss}, {model.first->weight}); }),
              HasSubstr("first.weight"));
  EXPECT_FALSE(model.first->weight.grad().defined());
}

TEST(Unused, FrozenWeightsAreJudgedByForwardUseAndNeverAnError) {
  Model model;
  model.first->weight.set_requires_grad(false);
  model.second->weight.set_requires_grad(false);
  quantize_(model, kLinear, is_linear, kError);
  const Tensor delta = torch::zeros({64, 64}, torch::requires_grad());
  const std::string text = said([&] {
    // first: low-rank adaption by a sum of weights. second: as it is.
    const Tensor x = at::linear(input(), model.first->weight + delta);
    model.second(x).sum().backward();
  });
  EXPECT_EQ(count(text, "[quantize_]"), 1u) << text;
  EXPECT_THAT(text, AllOf(HasSubstr("first.weight"), HasSubstr("it is frozen"),
                          Not(HasSubstr("second.weight"))));
}

TEST(Unused, FrozenWeightsOfAModelWithoutAnyProductOfOurs) {
  Model model;
  model.first->weight.set_requires_grad(false);
  quantize_(model, {{"first", kLinear}});
  const Tensor delta = torch::zeros({64, 64}, torch::requires_grad());
  EXPECT_THAT(said([&] { at::linear(input(), model.first->weight + delta).sum().backward(); }),
              HasSubstr("first.weight"));
}

TEST(Unused, AWeightThatIsTrainedLaterIsWatchedFromTheBeginning) {
  Model model;
  model.first->weight.set_requires_grad(false);
  quantize_(model, {{"first", kLinear}}, kError);
  model.first->weight.set_requires_grad(true);
  EXPECT_THAT(error_of([&] { at::mm(input(), scaled(model.first->weight)).sum().backward(); }),
              HasSubstr("first.weight"));
}

TEST(Unused, AReplacedWeightIsNoticed) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  model.first->weight = torch::randn({64, 64}, torch::requires_grad());
  EXPECT_THAT(error_of([&] { model.first(input()).sum().backward(); }),
              AllOf(HasSubstr("first.weight"), HasSubstr("assigned after the conversion"),
                    Not(HasSubstr("second"))));
  EXPECT_THAT(check_conversion(model).complaints().front().remedy, HasSubstr("set_data"));
}

TEST(Unused, AGraphFromBeforeTheConversionDoesNotCount) {
  Model model;
  const Tensor loss = model.first(input()).sum();
  quantize_(model, kLinear, is_linear, kError);
  EXPECT_EQ(error_of([&] { loss.backward(); }), "(no error)");
  EXPECT_THAT(error_of([&] { at::mm(input(), scaled(model.first->weight)).sum().backward(); }),
              HasSubstr("first.weight"));
}

TEST(Unused, AnExpertWithoutTokensIsNoFalseAlarm) {
  Model model;
  quantize_(model, {{"experts", kExperts}}, kError);
  EXPECT_EQ(said([&] {
              const Tensor x = input();
              at::mm(x.slice(0, 0, 0), model.experts[0]).sum().backward();
              at::bmm(torch::zeros({2, 0, 64}), model.experts).sum().backward();
            }),
            "");
}

TEST(Unused, APenaltyIsNoAlarmWhereTheWeightHadAProduct) {
  Model model;
  quantize_(model, {{"first", kLinear}}, kError);
  const auto penalty = [&] { return model.first->weight.square().sum(); };
  EXPECT_EQ(error_of([&] { (model.first(input()).sum() + penalty()).backward(); }), "(no error)");
  EXPECT_EQ(error_of([&] { penalty().backward(); }), "(no error)");
  quantize_(model, {{"second", kLinear}}, kError);
  const Tensor y = model.second(input()).sum();
  EXPECT_EQ(error_of([&] { model.second->weight.square().sum().backward(); }), "(no error)")
      << "the forward has run";
  y.backward();
}

// Decision 022 says so: a gradient does not tell where it comes from.
TEST(Unused, APenaltyBeforeAnyProductIsTakenForAUse) {
  Model model;
  quantize_(model, {{"first", kLinear}}, kError);
  EXPECT_THAT(error_of([&] { model.first->weight.square().sum().backward(); }),
              HasSubstr("first.weight"));
}

// ---- activation checkpointing -------------------------------------------------
// Runs `layer` again in backward, with a backward of its own.
struct Recompute : torch::autograd::Function<Recompute> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, nn::Module* layer) {
    ctx->save_for_backward({x});
    ctx->saved_data["layer"] = reinterpret_cast<int64_t>(layer);
    const at::NoGradGuard no_grad;
    return layer->as<nn::Linear>()->forward(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const at::AutoGradMode grad_mode(true);
    const Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_();
    // NOLINTNEXTLINE(performance-no-int-to-ptr): saved_data takes no pointers
    auto* layer = reinterpret_cast<nn::Module*>(ctx->saved_data["layer"].toInt());
    layer->as<nn::Linear>()->forward(x).backward(grads[0]);
    return {x.grad(), Tensor()};
  }
};

TEST(Unused, CheckpointedLayersAreNoFalseAlarm) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  EXPECT_EQ(said([&] {
              for (int step = 0; step < 2; ++step) {
                const Tensor x = input().requires_grad_();
                Recompute::apply(model.second(Recompute::apply(x, model.first.get())),
                                 model.second.get())
                    .sum()
                    .backward();
              }
            }),
            "");
  EXPECT_THAT(check_conversion(model).complaints(), IsEmpty());
}

// ---- copies, several models, threads ------------------------------------------
TEST(Unused, ACopyCountsWithItsWeight) {
  struct Layer : nn::Cloneable<Layer> {
    Layer() { reset(); }
    void reset() override { fc = register_module("fc", nn::Linear(64, 64)); }
    nn::Linear fc{nullptr};
  };
  const auto model = std::make_shared<Layer>();
  quantize_(*model, kLinear, is_linear, kError);
  const auto copy = std::dynamic_pointer_cast<Layer>(model->clone());
  EXPECT_EQ(said([&] { copy->fc(input()).sum().backward(); }), "");
  EXPECT_EQ(use_of(*copy, "fc.weight"), Use::LOW_PRECISION);
  EXPECT_EQ(use_of(*model, "fc.weight"), Use::LOW_PRECISION);
}

TEST(Unused, TheRecordOutlivesTheOriginal) {
  Tensor copy;
  {
    nn::Linear linear(64, 64);
    quantize_(*linear, kLinear);
    copy = linear->weight.detach().clone();
  }
  const uint64_t id = find_tag(copy)->id();
  at::linear(input(), copy);
  EXPECT_EQ(moe8::use_of(id).use, Use::LOW_PRECISION);
}

TEST(Unused, NothingOfADeadWeightIsJudged) {
  Model other;
  quantize_(other, {{"first", kLinear}}, kError);
  {
    nn::Linear gone(64, 64);
    quantize_(*gone, kLinear, is_linear, kError);
    gone->weight.register_hook([](const Tensor&) {});  // a hook of the user's beside ours
    gone->weight.set_requires_grad(false);             // would be judged as a frozen one
  }
  EXPECT_EQ(said([&] { other.first(input()).sum().backward(); }), "");
}

TEST(Unused, TwoModelsAreJudgedEachByItsOwnBackward) {
  Model used, unused;
  quantize_(used, {{"first", kLinear}}, kError);
  quantize_(unused, {{"second", kLinear}}, kError);
  EXPECT_EQ(error_of([&] { used.first(input()).sum().backward(); }), "(no error)");
  EXPECT_THAT(error_of([&] { at::mm(input(), scaled(unused.second->weight)).sum().backward(); }),
              AllOf(HasSubstr("second.weight"), Not(HasSubstr("first"))));
}

TEST(Unused, ThreadsThatTrainAtTheSameTime) {
  std::vector<std::thread> threads;
  std::vector<std::string> errors(4);
  threads.reserve(errors.size());
  for (std::string& error : errors) {
    threads.emplace_back([&error] {
      Model model;
      quantize_(model, kLinear, is_linear, kError);
      error = error_of([&] {
        for (int step = 0; step < 10; ++step) model.first(input()).sum().backward();
        at::mm(input(), scaled(model.second->weight)).sum().backward();
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) {
    EXPECT_THAT(error, AllOf(HasSubstr("second.weight"), Not(HasSubstr("first"))));
  }
}

// ---- conversions again ----------------------------------------------------------
TEST(Unused, TakingTheConversionBackEndsTheWatch) {
  Model model;
  quantize_(model, kLinear, is_linear, kError);
  const Tensor alias = model.first->weight.detach();
  dequantize_(model);
  EXPECT_EQ(error_of([&] { model.first(input()).sum().backward(); }), "(no error)");
  EXPECT_THAT(check_conversion(model).weights, IsEmpty());
}

TEST(Unused, AnotherConfigIsJudgedAnew) {
  Model model;
  quantize_(model, {{"first", kLinear}}, kError);
  model.first(input()).sum().backward();
  quantize_(model, {{"first", kLinear}}, kError);  // the same: what was noted stays
  EXPECT_EQ(use_of(model, "first.weight"), Use::LOW_PRECISION);
  quantize_(model, {{"first", recipe("rowwise")}}, kError);
  EXPECT_EQ(use_of(model, "first.weight"), Use::NONE);
  EXPECT_THAT(error_of([&] { at::mm(input(), scaled(model.first->weight)).sum().backward(); }),
              HasSubstr("first.weight"));
}

// ---- notes of products ------------------------------------------------------------
TEST(Unused, ProductsInHighPrecisionAreNamedByTheBackward) {
  Model model;
  quantize_(model, {{"re:first|second", kLinear}});
  const uint64_t id = find_tag(model.first->weight)->id();
  const std::string text = said([&] {
    const Tensor y = at::mm(input(), scaled(model.first->weight));
    // As nested operations note it: once per reason, by the outermost.
    for (const char* op : {"linear", "matmul", "mm"}) note_high_precision(id, op, "do otherwise");
    y.sum().backward();
  });
  EXPECT_EQ(count(text, "[quantize_]"), 1u) << text;
  EXPECT_THAT(text, AllOf(HasSubstr("first.weight (64, 64): at::linear ran in high precision: do "
                                    "otherwise."),
                          Not(HasSubstr("matmul"))));
  const WeightUse use = check_conversion(model).weights[0];
  EXPECT_EQ(use.use, Use::HIGH_PRECISION);
  EXPECT_THAT(use.ops, ElementsAre("linear"));
}

TEST(Unused, WithoutABackwardToComeTheProductItselfWarns) {
  Model model;
  quantize_(model, kLinear);
  const uint64_t first = find_tag(model.first->weight)->id();
  const uint64_t second = find_tag(model.second->weight)->id();
  const at::NoGradGuard no_grad;
  const std::string text = said([&] {
    for (int i = 0; i < 3; ++i) {
      note_high_precision(first, "mv", "do otherwise");
      note_high_precision(second, "mv", "do otherwise");
    }
  });
  EXPECT_EQ(count(text, "first.weight"), 1u) << text;
  EXPECT_EQ(count(text, "second.weight"), 1u) << text;
  EXPECT_EQ(said([&] { note_high_precision(first, "mm", "another reason"); }),
            "moe8: warning: [quantize_] first.weight: at::mm ran in high precision: another "
            "reason.\n");
}

TEST(Unused, BothPrecisionsAreAWarningAndNoError) {
  Model model;
  quantize_(model, {{"first", kLinear}}, kError);
  const uint64_t id = find_tag(model.first->weight)->id();
  EXPECT_THAT(said([&] {
                const Tensor y = model.first(input());
                note_high_precision(id, "dot", "do otherwise");
                y.sum().backward();
              }),
              HasSubstr("first.weight"));
  EXPECT_EQ(use_of(model, "first.weight"), Use::BOTH);
}

// ---- what must not change ---------------------------------------------------------
TEST(Unused, HooksOfTheUserAndTheGradientStayAsTheyAre) {
  Model model;
  int before = 0, after = 0;
  model.first->weight.register_hook([&](const Tensor&) { ++before; });
  quantize_(model, kLinear);
  const auto index = model.first->weight.register_hook([&](const Tensor&) { ++after; });
  model.first(input()).sum().backward();
  EXPECT_EQ(before, 1);
  EXPECT_EQ(after, 1);
  model.first->weight.remove_hook(index);
  model.first(input()).sum().backward();
  EXPECT_EQ(before, 2);
  EXPECT_EQ(after, 1);
}

// Hands a given tensor to its argument as gradient.
struct Give : torch::autograd::Function<Give> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& w,
                        const Tensor& grad) {
    ctx->saved_data["grad"] = grad;
    return w.sum();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list&) {
    Tensor grad = ctx->saved_data["grad"].toTensor();
    ctx->saved_data.clear();
    return {std::move(grad), Tensor()};
  }
};

TEST(Unused, TheGradientIsNotCopied) {
  Model model;
  quantize_(model, {{"first", kLinear}}, {.unused = Unused::IGNORE});
  Tensor grad = torch::ones({64, 64});
  const void* data = grad.data_ptr();
  const Tensor loss = Give::apply(model.first->weight, std::exchange(grad, Tensor()));
  loss.backward();
  EXPECT_EQ(model.first->weight.grad().data_ptr(), data);
}

// ---- check_conversion ---------------------------------------------------------------
TEST(CheckConversion, IsATableAndJson) {
  Model model;
  quantize_(model, {{"re:first|second", kLinear}, {"experts", kExperts}});
  model.first(input()).sum().backward();
  const ConversionCheck check = check_conversion(model);
  ASSERT_EQ(check.weights.size(), 3u);
  EXPECT_EQ(check.complaints().size(), 2u);
  std::ostringstream out;
  out << check;
  EXPECT_EQ(out.str(),
            "converted weight  shape        products ran in  what to do\n"
            "experts           (2, 64, 64)  none             no product of it was seen so far\n"
            "first.weight      (64, 64)     low precision\n"
            "second.weight     (64, 64)     none             no product of it was seen so far\n"
            "1 of 3 converted weights had all their products in low precision.\n");
  const nlohmann::json json = nlohmann::json::parse(check.to_json());
  EXPECT_EQ(json["complaints"], 2);
  EXPECT_EQ(json["weights"][0]["fqn"], "experts");
  EXPECT_EQ(json["weights"][0]["use"], "none");
  EXPECT_EQ(json["weights"][0]["shape"], (std::vector<int64_t>{2, 64, 64}));
  EXPECT_EQ(json["weights"][1]["remedy"], "");
}

TEST(CheckConversion, APlainModelHasNoWeightsToCheck) {
  const ConversionCheck check = check_conversion(Model());
  EXPECT_THAT(check.weights, IsEmpty());
  EXPECT_THAT(check.to_table(), HasSubstr("0 of 0"));
}

TEST(CheckConversion, CountsThePublicOperationsToo) {
  Model model;
  quantize_(model, {{"first", kLinear}});
  quantize_then_linear(input(), model.first->weight, {}, kLinear);
  EXPECT_EQ(use_of(model, "first.weight"), Use::LOW_PRECISION);
}

}  // namespace
}  // namespace moe8
