// SPDX-License-Identifier: BSD-3-Clause
// NumericsMonitor on models that know nothing of it: whose numbers, which, and what they warn of.
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "moe8/grouped_mm.h"
#include "moe8/numerics.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "numerics/bounds.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::offs_of;
using testing::same_bits;

TransformerConfig small_config() {
  TransformerConfig config;
  config.dim = 32;
  config.n_layers = 2;
  config.n_heads = config.n_kv_heads = 2;
  config.hidden_dim = 64;
  config.dense_hidden_dim = 64;
  config.n_experts = 4;
  return config;
}

Transformer converted_model() {
  Transformer model(small_config(), 1, at::kFloat);
  quantize_(*model, FqnToConfig{{"re:.*experts.w[123]$", recipe("mxfp8_rceil")},
                                {"re:.*attention.w[qo]$", recipe("rowwise")}});
  return model;
}

torch::Tensor tokens() {
  return (torch::arange(64) * 37 % 256).view({2, 32});
}

void train_once(Transformer& model) {
  model->forward(tokens()).square().mean().backward();
}

std::vector<std::string> product_names(const WeightNumerics& weight) {
  std::vector<std::string> names;
  for (const ProductNumerics& product : weight.products) names.push_back(product.name);
  return names;
}

const WeightNumerics& find(const NumericsReport& report, const std::string& fqn) {
  for (const WeightNumerics& weight : report.weights) {
    if (weight.fqn == fqn) return weight;
  }
  throw std::runtime_error("no " + fqn);
}

// ---- whose and which --------------------------------------------------------
TEST(NumericsMonitor, ReportsEveryConvertedWeightByName) {
  Transformer model = converted_model();
  NumericsMonitor monitor(*model);
  train_once(model);
  const NumericsReport report = monitor.report();
  ASSERT_EQ(report.weights.size(), 4u + 3u);  // wq and wo of two layers, w1, w2, w3 of one
  for (const WeightNumerics& weight : report.weights) {
    EXPECT_THAT(product_names(weight), ElementsAre("out", "grad_input", "grad_weight"))
        << weight.fqn;
    for (const ProductNumerics& p : weight.products) {
      EXPECT_EQ(p.calls, 1);
      EXPECT_GT(p.sqnr_db, 20) << weight.fqn << " " << p.name;
      EXPECT_GT(p.left.amax, 0);
      EXPECT_GT(p.right.sampled, 0);
    }
  }
  const WeightNumerics& w2 = find(report, "layers.1.moe.experts.w2");
  EXPECT_EQ(w2.products[0].left.name, "input");
  EXPECT_EQ(w2.products[0].right.name, "weight");
  EXPECT_EQ(w2.products[1].left.name, "grad_output");
  EXPECT_EQ(w2.products[2].right.name, "input");
  EXPECT_EQ(w2.products[2].right.format, "mx float8_e4m3fn rceil");
  EXPECT_EQ(w2.products[0].right.amax,
            model->layers[1]->as<TransformerBlock>()->moe->experts->w2.abs().max().item<double>());
}

TEST(NumericsMonitor, CountsTheTokensOfExperts) {
  Transformer model = converted_model();
  NumericsMonitor monitor(*model);
  train_once(model);
  const NumericsReport report = monitor.report();
  ASSERT_EQ(report.experts.size(), 1u);
  const ExpertTokens& experts = report.experts[0];
  EXPECT_EQ(experts.fqn, "layers.1.moe.experts");
  const at::Tensor counted = model->layers[1]->as<TransformerBlock>()->moe->tokens_per_expert;
  ASSERT_EQ(experts.tokens.size(), 4u);
  for (int64_t e = 0; e < 4; ++e) EXPECT_EQ(experts.tokens[e], counted[e].item<int64_t>());
}

TEST(NumericsMonitor, ChangesNoBitAndDrawsNoRandomNumber) {
  Transformer a = converted_model(), b = converted_model();
  torch::manual_seed(5);
  train_once(a);
  const at::Tensor expected = torch::rand({4});
  torch::manual_seed(5);
  {
    NumericsMonitor monitor(*b);
    train_once(b);
  }
  EXPECT_TRUE(same_bits(expected, torch::rand({4})));
  const auto grads_a = a->parameters(), grads_b = b->parameters();
  for (size_t i = 0; i < grads_a.size(); ++i) {
    EXPECT_TRUE(same_bits(grads_a[i].grad(), grads_b[i].grad()));
  }
}

TEST(NumericsMonitor, SumsUpMicroBatchesUntilItIsStopped) {
  Transformer model = converted_model();
  NumericsMonitor monitor(*model);
  train_once(model);
  train_once(model);
  monitor.stop();
  train_once(model);
  monitor.stop();
  for (const WeightNumerics& weight : monitor.report().weights) {
    for (const ProductNumerics& product : weight.products) EXPECT_EQ(product.calls, 2);
  }
}

TEST(NumericsMonitor, OtherModelsAreNotMixedIn) {
  Transformer model = converted_model(), other = converted_model();
  NumericsMonitor monitor(*model);
  train_once(other);
  for (const WeightNumerics& weight : monitor.report().weights) {
    EXPECT_TRUE(weight.products.empty());
  }
  const NumericsReport report = monitor.report();
  EXPECT_THAT(report.to_table(),
              AllOf(HasSubstr("no product seen"), Not(HasSubstr("within their bounds"))));
  ASSERT_EQ(report.warnings.size(), report.weights.size());
  EXPECT_EQ(report.warnings[0].text(),
            report.weights[0].fqn + ": low-precision products 0, expected at least 1");
}

TEST(NumericsMonitor, ModelsWithoutConvertedWeightsHaveAnEmptyReport) {
  Transformer model(small_config(), 1, at::kFloat);
  NumericsMonitor monitor(*model);
  train_once(model);
  EXPECT_TRUE(monitor.report().weights.empty());
  EXPECT_TRUE(monitor.report().warnings.empty());
  EXPECT_THAT(monitor.report().to_table(), HasSubstr("No converted weight"));
}

TEST(NumericsMonitor, SeesAutocastCopiesInferenceModeAndDirectCalls) {
  torch::nn::Linear linear(torch::nn::LinearOptions(64, 32).bias(false));
  quantize_(*linear, recipe("mxfp8_emulated"));
  NumericsMonitor monitor(*linear);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  linear(torch::randn({8, 64}).requires_grad_());
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(monitor.report().weights[0].products[0].calls, 1);
  {
    const c10::InferenceMode inference;
    linear(torch::randn({8, 64}));
  }
  EXPECT_EQ(monitor.report().weights[0].products[0].calls, 2);

  Transformer plain(small_config(), 1, at::kFloat);
  auto& experts = *plain->layers[1]->as<TransformerBlock>()->moe->experts;
  NumericsMonitor direct(*plain);
  quantize_then_scaled_grouped_mm(torch::randn({16, 32}), experts.w1.transpose(-2, -1),
                                  offs_of({4, 4, 4, 4}), recipe("fp8_rowwise"));
  ASSERT_EQ(direct.report().weights.size(), 1u);
  EXPECT_EQ(direct.report().weights[0].fqn, "layers.1.moe.experts.w1");
}

TEST(NumericsMonitor, AProductOfJoinedWeightsIsThatOfEach) {
  struct Experts : torch::nn::Module {
    at::Tensor w1{register_parameter("w1", torch::randn({2, 32, 64}))};
    at::Tensor w3{register_parameter("w3", torch::randn({2, 32, 64}))};
  } model;
  quantize_(model, {{"w1", recipe("mxfp8_rceil")}, {"w3", recipe("mxfp8_rceil")}});
  const NumericsMonitor monitor(model);
  const at::Tensor both = at::cat({model.w1, model.w3}, 1).transpose(1, 2);
  const at::Tensor offs = torch::tensor({40, 64}, torch::kInt32);
  at::_grouped_mm(torch::randn({64, 64}), both, offs, {}, at::kFloat).sum().backward();
  const NumericsReport report = monitor.report();
  ASSERT_EQ(report.weights.size(), 2u);
  for (const WeightNumerics& weight : report.weights) EXPECT_EQ(weight.products.size(), 2u);
}

TEST(NumericsMonitor, ThreadsMayTrainSideBySide) {
  Transformer a = converted_model(), b = converted_model();
  NumericsMonitor watches_a(*a), watches_b(*b);
  const auto train = [](Transformer& model) {
    for (int i = 0; i < 5; ++i) train_once(model);
  };
  std::thread one(train, std::ref(a)), two(train, std::ref(b));
  for (int i = 0; i < 20; ++i) {
    NumericsMonitor comes_and_goes(*a);
    watches_a.report();
  }
  one.join();
  two.join();
  for (const NumericsMonitor* monitor : {&watches_a, &watches_b}) {
    for (const WeightNumerics& weight : monitor->report().weights) {
      for (const ProductNumerics& product : weight.products) EXPECT_EQ(product.calls, 5);
    }
  }
}

TEST(NumericsMonitor, OptionsAreChecked) {
  torch::nn::Linear linear(4, 4);
  EXPECT_THAT(error_of([&] { NumericsMonitor(*linear, NumericsOptions{.sampled = 0}); }),
              HasSubstr("[NumericsMonitor] options.sampled: expected at least 1, got 0"));
  EXPECT_THAT(error_of([&] { NumericsMonitor(*linear, NumericsOptions{.experts = -1}); }),
              HasSubstr("options.experts"));
}

// ---- reports ----------------------------------------------------------------
TEST(NumericsReport, JsonIsOneLineThatHoldsAllValues) {
  Transformer model = converted_model();
  NumericsMonitor monitor(*model);
  train_once(model);
  const std::string text = monitor.report().to_json();
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(text);
  const auto& w1 = json.at("weights").at(4);
  EXPECT_EQ(w1.at("fqn"), "layers.1.moe.experts.w1");
  const auto& product = w1.at("products").at("grad_weight");
  EXPECT_GT(product.at("sqnr_db").get<double>(), 20);
  EXPECT_GT(product.at("grad_output").at("amax").get<double>(), 0);
  EXPECT_EQ(product.at("input").at("format"), "mx float8_e4m3fn rceil");
  EXPECT_EQ(json.at("experts").at(0).at("tokens").size(), 4u);
  EXPECT_TRUE(json.at("warnings").is_array());
}

TEST(NumericsReport, TableNamesEveryProduct) {
  Transformer model = converted_model();
  NumericsMonitor monitor(*model);
  train_once(model);
  const std::string table = monitor.report().to_table();
  EXPECT_THAT(table, HasSubstr("layers.1.moe.experts.w3 grad_input"));
  EXPECT_THAT(table, HasSubstr("layers.1.moe.experts: busiest expert "));
}

TEST(NumericsReport, NumbersDoNotFollowTheLocale) {
  const OperandNumerics input{.name = "input", .format = "f", .amax = 1234.5, .sqnr_db = 31.25};
  NumericsReport report;
  report.weights = {{"w",
                     {{.name = "out",
                       .calls = 1,
                       .left = input,
                       .right = input,
                       .sampled = 1,
                       .sqnr_db = 28.5}}}};
  report.experts = {{"e", {1500, 500}}};
  const std::string table = report.to_table(), json = report.to_json();
  EXPECT_THAT(table, AllOf(HasSubstr("28.5"), HasSubstr("1.23e+03"), HasSubstr("0.00%"),
                           HasSubstr("busiest expert 1.50, least busy 0.50 of the mean of 1000")));
  EXPECT_THAT(json, AllOf(HasSubstr("\"sqnr_db\":28.5"), HasSubstr("\"amax\":1234.0"),
                          HasSubstr("\"balance\":0.8113")));
}

TEST(ExpertTokens, Balance) {
  const ExpertTokens even{"e", {5, 5, 5, 5}}, one{"e", {0, 0, 8, 0}}, none{"e", {0, 0}};
  EXPECT_DOUBLE_EQ(even.balance(), 1);
  EXPECT_DOUBLE_EQ(even.max_over_mean(), 1);
  EXPECT_DOUBLE_EQ(one.balance(), 0);
  EXPECT_DOUBLE_EQ(one.max_over_mean(), 4);
  EXPECT_DOUBLE_EQ(one.min_over_mean(), 0);
  EXPECT_DOUBLE_EQ(one.idle_share(), 0.75);
  EXPECT_DOUBLE_EQ(none.balance(), 0);
  EXPECT_DOUBLE_EQ(none.max_over_mean(), 0);
  EXPECT_DOUBLE_EQ((ExpertTokens{"e", {3}}).balance(), 1);
  EXPECT_DOUBLE_EQ((ExpertTokens{"e", {}}).balance(), 0);
}

// ---- bounds -----------------------------------------------------------------
std::vector<std::string> texts(const NumericsReport& report) {
  std::vector<std::string> all;
  for (const NumericsWarning& warning : report.warnings) all.push_back(warning.text());
  return all;
}

TEST(NumericsBounds, NormalNumbersAreWithinThem) {
  for (const RecipeInfo& info : all_recipes()) {
    const bool grouped = is_grouped(info.config);
    Transformer model(small_config(), 1, at::kFloat);
    quantize_(*model,
              FqnToConfig{{grouped ? "re:.*experts.w[123]$" : "re:.*attention.*", info.config}});
    NumericsMonitor monitor(*model);
    train_once(model);
    EXPECT_THAT(texts(monitor.report()), ElementsAre()) << info.name;
  }
}

TEST(NumericsBounds, WarningsNameTheLayerTheOperandAndTheValue) {
  torch::nn::Linear linear(torch::nn::LinearOptions(64, 32).bias(false));
  quantize_(*linear, recipe("tensorwise"));
  torch::nn::Sequential model(linear);
  at::Tensor x = torch::randn({256, 64}) * 1e-4;
  x[0][0] = 1e3;  // leaves no code for the rest
  NumericsMonitor monitor(*model);
  linear(x);
  const NumericsReport report = monitor.report();
  EXPECT_THAT(texts(report),
              ::testing::Contains(::testing::MatchesRegex(
                  "0.weight out.input: underflow (0.9[0-9]*|1), expected at most 0.05")));
  EXPECT_THAT(report.to_table(), HasSubstr("WARNING 0.weight out.input: underflow"));
}

TEST(NumericsBounds, NanAndInfAreToldOf) {
  torch::nn::Linear linear(torch::nn::LinearOptions(64, 32).bias(false));
  quantize_(*linear, recipe("mxfp8_emulated"));
  NumericsMonitor monitor(*linear);
  at::Tensor x = torch::randn({8, 64});
  x[3][3] = std::nanf("");
  linear(x);
  EXPECT_THAT(
      texts(monitor.report()),
      ::testing::IsSupersetOf({std::string("weight out.input: amax nan, expected 1e-12 to 1e+05"),
                               std::string("weight out.input: nonfinite 0.0625, expected none")}));
}

TEST(NumericsBounds, AreTheUsersToChange) {
  Transformer model = converted_model();
  NumericsOptions options;
  options.bounds = {{NumericsQuantity::OPERAND_SQNR, {}, 0, 1},
                    {NumericsQuantity::OPERAND_SQNR, ElemDtype::E4M3, 0, 1000}};
  NumericsMonitor monitor(*model, options);
  train_once(model);
  EXPECT_THAT(texts(monitor.report()), ElementsAre());
  options.bounds.pop_back();
  NumericsMonitor strict(*model, options);
  train_once(model);
  EXPECT_EQ(strict.report().warnings.size(), 7u * 6u);
}

TEST(NumericsBounds, ExpertsWithFewRowsSayNothing) {
  NumericsReport report;
  report.experts = {{"few", {10, 0, 10, 0}}, {"many", {400, 0, 0, 0, 0}}};
  report.warnings = warnings_of(report, default_numerics_bounds());
  EXPECT_THAT(texts(report), ElementsAre("many: busiest expert 5, expected at most 3.67",
                                         "many: idle experts 0.8, expected at most 0.25"));
}

TEST(NumericsBounds, ExpertsOfTheRootHaveAName) {
  NumericsReport report;
  report.experts = {{"", {400, 0, 0, 0, 0}}};
  report.warnings = warnings_of(report, default_numerics_bounds());
  EXPECT_THAT(report.to_table(), AllOf(HasSubstr("\n(root): busiest expert 5.00"),
                                       HasSubstr("WARNING (root): busiest expert 5")));
}

// The busiest of 8 experts, of which each token takes 2, can get at most 4 times the mean.
TEST(NumericsBounds, TheBusiestExpertCanReachItsBound) {
  const auto warned = [](std::vector<int64_t> tokens, int64_t top_k) {
    NumericsReport report;
    report.experts = {{"moe", std::move(tokens), top_k}};
    return texts({.warnings = warnings_of(report, default_numerics_bounds())});
  };
  EXPECT_THAT(warned({512, 86, 86, 86, 85, 85, 84, 0}, 2),
              ElementsAre("moe: busiest expert 4, expected at most 3"));
  EXPECT_THAT(warned({380, 92, 92, 92, 92, 92, 92, 92}, 2), ElementsAre());
  EXPECT_THAT(warned({100, 60, 20, 20}, 2),
              ElementsAre("moe: busiest expert 2, expected at most 1.67"));
  EXPECT_THAT(warned({100, 100, 100}, 3),
              ElementsAre());  // all get everything: nothing else can be
  std::vector<int64_t> many(128, 100);
  many[0] = 450;
  EXPECT_THAT(warned(many, 8), ElementsAre("moe: busiest expert 4.38, expected at most 4"));
}

TEST(NumericsAlarm, RepeatsItselfOnlyAfterAllWasWell) {
  NumericsReport bad, good;
  bad.experts = {{"moe", {400, 0, 0, 0, 0}}};
  bad.warnings = warnings_of(bad, default_numerics_bounds());
  NumericsAlarm alarm;
  EXPECT_EQ(alarm.fresh(bad).size(), 2u);
  EXPECT_EQ(alarm.fresh(bad).size(), 0u);
  EXPECT_EQ(alarm.fresh(good).size(), 0u);
  EXPECT_EQ(alarm.fresh(bad).size(), 2u);
  ::testing::internal::CaptureStderr();
  NumericsAlarm().show(bad);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("warning: [numerics] moe: idle experts 0.8, expected at most 0.25"));
}

}  // namespace
}  // namespace moe8
