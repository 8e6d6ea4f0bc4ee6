// SPDX-License-Identifier: BSD-3-Clause
// Numerics of a run: watched when due, written beside the steps, warned of once, and without
// effect.
#include "train/health.h"

#include <cmath>
#include <sstream>

#include "moe8/quantize_model.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "train/progress.h"
#include "train/store/metrics.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

RunConfig tiny_config(const TemporaryFolder& folder, const std::string& out) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "the cat sat on the mat and the dog lay on the log. ";
  RunConfig config;
  config.model.dim = config.model.hidden_dim = config.model.dense_hidden_dim = 32;
  config.model.n_layers = 2;
  config.model.n_heads = config.model.n_kv_heads = 2;
  config.model.n_experts = 4;
  config.model.max_seq_len = 32;
  config.data.files = {folder.write("text.txt", text)};
  config.training.steps = 9;
  config.training.batch_size = 4;
  config.training.seq_len = 32;
  config.training.validation_batches = 1;
  config.training.threads = 1;
  config.training.recipe = "mxfp8_rceil";
  config.numerics.interval = 4;
  config.output.folder = folder / out;
  config.output.checkpoint = false;
  return config;
}

std::vector<ExpertTokens> counted(TransformerImpl& model) {
  std::vector<double> counts;
  for (const at::Tensor& layer : expert_counts(model)) {
    for (int64_t e = 0; e < layer.numel(); ++e) counts.push_back(layer[e].item<double>());
  }
  return expert_tokens(model, counts);
}

TEST(Health, TheFirstStepAndEveryFourthAreWatched) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "run");
  config.training.accumulation = 2;
  train(config);
  EXPECT_EQ(read_metrics(folder / "run/metrics.jsonl").size(), 9u);
  std::vector<int64_t> steps;
  for (const NumericsLine& line : read_numerics(folder / "run/metrics.jsonl")) {
    steps.push_back(line.step);
    // 2 layers' attention, a dense and a shared feed-forward, 3 expert weights; 3 products each.
    EXPECT_EQ(line.products.size(), 3u * (2 * 4 + 3 + 3 + 3));
    EXPECT_GT(line.products.front().sqnr_db, 20);
    ASSERT_EQ(line.experts.size(), 1u);
    EXPECT_EQ(line.experts[0].fqn, "layers.1.moe.experts");
    EXPECT_EQ(line.experts[0].mean() * 4, 2 * 2 * 4 * 32);  // of both batches
  }
  EXPECT_THAT(steps, ElementsAre(1, 4, 8, 9));  // and the last
}

TEST(Health, WatchingChangesNoLoss) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "watched");
  config.numerics.interval = 1;
  train(config);
  config.output.folder = folder / "not";
  config.numerics.interval = 0;
  train(config);
  const auto watched = read_metrics(folder / "watched/metrics.jsonl");
  const auto plain = read_metrics(folder / "not/metrics.jsonl");
  ASSERT_EQ(watched.size(), plain.size());
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(watched[i].loss, plain[i].loss);
  EXPECT_EQ(read_numerics(folder / "watched/metrics.jsonl").size(), 9u);
  EXPECT_TRUE(read_numerics(folder / "not/metrics.jsonl").empty());
}

TEST(Health, RunsInHighPrecisionHaveExpertsToo) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder, "run");
  config.training.recipe = "bf16";
  config.training.steps = 1;
  train(config);
  const auto lines = read_numerics(folder / "run/metrics.jsonl");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].products.empty());
  EXPECT_EQ(lines[0].experts.size(), 1u);
}

TEST(Health, WarningsNameStepAndLayerAndComeOnce) {
  TransformerConfig small;
  small.dim = small.hidden_dim = small.dense_hidden_dim = 32;
  small.n_layers = 2;
  Transformer model(small);
  quantize_(*model, FqnToConfig{{"re:.*attention.wo.weight", recipe("tensorwise")}});
  {
    const torch::NoGradGuard no_grad;
    auto& wo = model->layers[0]->as<TransformerBlock>()->attention->wo->weight;
    wo.mul_(1e-8);
    wo[0][0] = 1;
  }
  Health health(*model, {.interval = 10});
  const auto look = [&](int64_t step) {
    health.start(step);
    model->forward(torch::zeros({2, 8}, torch::kLong)).sum().backward();
    health.stop();
    health.finish(counted(*model));
    const auto report = health.take(/*waits=*/true);
    return report ? health.fresh_warnings(*report) : std::vector<std::string>{"not watched"};
  };
  EXPECT_THAT(look(1), ::testing::Contains(::testing::StartsWith(
                           "[numerics] step 1: layers.0.attention.wo.weight out.weight: underflow "
                           "0.9")));
  EXPECT_THAT(look(2), ElementsAre("not watched"));
  EXPECT_THAT(look(10), ElementsAre());
}

TEST(StarvedExperts, AreThoseWithoutATokenForAWhile) {
  StarvedExperts starved;
  const auto texts = [&] {
    std::vector<std::string> all;
    for (const NumericsWarning& warning : starved.take()) all.push_back(warning.text());
    return all;
  };
  const auto step = [&](std::vector<int64_t> tokens) { starved.add({{"moe", std::move(tokens)}}); };
  for (int i = 0; i < 9; ++i) step({50, 0, 50, 0});
  EXPECT_THAT(texts(), ElementsAre());  // too few steps to say
  step({50, 0, 49, 1});
  EXPECT_THAT(texts(), ElementsAre("moe: starved experts 1, expected none"));
  for (int i = 0; i < 10; ++i) step({50, 1, 49, 0});
  EXPECT_THAT(texts(), ElementsAre("moe: starved experts 1, expected none"));
  for (int i = 0; i < 10; ++i) step({1, 0, 1, 0});
  EXPECT_THAT(texts(), ElementsAre());  // so few rows say nothing
}

TEST(Metrics, NumericsLinesStandBesideStepsAndAreReadOnTheirOwn) {
  const TemporaryFolder folder;
  NumericsReport report;
  report.weights = {
      {"w", {{.name = "out", .sqnr_db = 30}, {.name = "grad_input", .sqnr_db = INFINITY}}}};
  ProductNumerics& out = report.weights[0].products[0];
  out.left = {.name = "input", .amax = 2, .underflow = 0.25};
  out.right = {.name = "weight", .amax = 3, .underflow = 0.125, .saturated = 0.5};
  report.weights[0].products[1].left = {.name = "grad_output", .amax = std::nan("")};
  report.weights[0].products[1].right = {.name = "weight"};
  report.experts = {{"moe", {7, 0, 3}}};
  report.warnings = {{"w out.input", NumericsQuantity::UNDERFLOW_SHARE, 0.25, {}}};
  {
    MetricsFile file(folder / "m.jsonl");
    file.write_numerics(3, report.to_json());
    file.write(StepMetrics{.step = 3});
  }
  EXPECT_EQ(read_metrics(folder / "m.jsonl").size(), 1u);
  const auto lines = read_numerics(folder / "m.jsonl");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].step, 3);
  ASSERT_EQ(lines[0].products.size(), 2u);
  const NumericsLine::Product& product = lines[0].products[1];
  EXPECT_EQ(product.weight + " " + product.product, "w out");
  EXPECT_EQ(product.sqnr_db, 30);
  EXPECT_EQ(product.underflow, 0.25);
  EXPECT_EQ(product.saturated, 0.5);
  EXPECT_EQ(product.amax, 3);
  EXPECT_TRUE(std::isinf(lines[0].products[0].sqnr_db));
  EXPECT_TRUE(std::isnan(lines[0].products[0].amax));
  EXPECT_EQ(lines[0].experts, report.experts);
  EXPECT_THAT(lines[0].warnings, ::testing::ElementsAre(report.warnings[0].text()));
  folder.write("bad.jsonl", "{\"kind\": \"numerics\", \"step\": 1}\n");
  EXPECT_THAT(error_of([&] { read_numerics(folder / "bad.jsonl"); }), HasSubstr("bad.jsonl:1: "));
}

TEST(Progress, WarningsLeaveTheLineStanding) {
  std::ostringstream out;
  Progress progress(&out, Progress::Kind::TERMINAL, [] { return 80; });
  const size_t run = progress.add("bf16", 10);
  progress.show(run, {.step = 10});
  ::testing::internal::CaptureStderr();
  progress.warn(run, {});
  EXPECT_EQ(out.str().find('\n'), std::string::npos);
  progress.warn(run, {"[numerics] step 10: w: amax 0"});
  EXPECT_THAT(out.str(), ::testing::EndsWith("\n"));
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("warning: [numerics] step 10: w: amax 0"));
}

}  // namespace
}  // namespace moe8
