// SPDX-License-Identifier: BSD-3-Clause
// The demo on a tiny model: runs side by side, the table, the verdict, the page.
#include "train/report/demo.h"

#include <sstream>

#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;

DemoResult made_up() {
  DemoResult result;
  result.bigram_loss = 2.4;
  for (const auto& [name, loss] : {std::pair{"bf16", 2.0}, {"mxfp8_rceil", 2.01}}) {
    RunRecord run;
    run.name = run.config.training.recipe = name;
    run.finished = true;
    run.steps.resize(1);
    run.steps[0].step = 400;
    run.validation_loss = loss;
    run.train_loss = loss - 0.1;
    run.speed.wall = {.median = 1234, .spread = 1.1, .steps = 400};
    run.speed.cpu = {.median = 700, .spread = 1.1, .steps = 400};
    run.peak_memory = 500'000'000;
    result.runs.push_back(run);
  }
  return result;
}

TEST(Demo, TablesHaveARowForEveryRecipeAndTheBigramLoss) {
  const std::string table = to_table(made_up());
  EXPECT_THAT(table, HasSubstr("mxfp8_rceil        400    1.9100      2.0100      +0.50%   -\n"));
  EXPECT_THAT(table, HasSubstr("byte-bigram table                     2.4000\n"));
  EXPECT_THAT(table, HasSubstr("mxfp8_rceil  1234      1.00   700                1.00   500 MB\n"));
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 79u) << line;
}

TEST(Demo, NoRatioOfSpeedsThatSayLittle) {
  DemoResult result = made_up();
  result.runs[1].speed.wall.spread = 2.34;
  const std::string table = to_table(result);
  EXPECT_THAT(table, HasSubstr("mxfp8_rceil  1234      -      700                1.00"));
  EXPECT_THAT(table, HasSubstr("No ratio where the speed says little: mxfp8_rceil: the rates of "
                               "its steps spread by 2.3 x.\n"));
  result.runs[0].speed.wall.steps = 9;
  EXPECT_THAT(to_table(result), HasSubstr("bf16: 9 steps are too few; mxfp8_rceil: the rates"));
}

TEST(Demo, VerdictHoldsBothBars) {
  DemoResult result = made_up();
  EXPECT_TRUE(verdict(result).passed);
  EXPECT_EQ(
      verdict(result).sentence,
      "The demo succeeded: all recipes are within 0.50% of bf16 and at least 0.39 nats below the "
      "bigram table.");
  result.runs[1].validation_loss = 1.97;  // better by too much is as suspicious
  EXPECT_FALSE(verdict(result).passed);
  result = made_up();
  result.bigram_loss = 2.15;
  EXPECT_FALSE(verdict(result).passed);
  result = made_up();
  result.runs[1].validation_loss = std::nan("");
  EXPECT_FALSE(verdict(result).passed);
}

TEST(Demo, TheBuiltInConfigIsValid) {
  const RunConfig config = parse_run_config(demo_config_text(), "configs/demo.toml");
  EXPECT_EQ(config.training.weights, Weights::MASTER);
  EXPECT_GT(config.model.n_experts, 1);
}

TEST(Demo, TrainsEveryRecipeAndWritesThePage) {
  const testing::TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 300; ++i) text += "a <b> & the cat sat on the mat. ";
  RunConfig config;
  config.model.dim = 32;
  config.model.n_layers = 2;
  config.model.n_heads = config.model.n_kv_heads = 2;
  config.model.hidden_dim = config.model.dense_hidden_dim = 32;
  config.data.files = {folder.write("a<b>.txt", text)};
  config.training.steps = 6;
  config.training.batch_size = 2;
  config.training.seq_len = 32;
  config.training.threads = 1;
  config.output.folder = folder / "demo";
  std::ostringstream progress;
  RunOptions options;
  options.progress = &progress;
  for (int twice = 0; twice < 2; ++twice) {  // a second demo replaces the first
    const DemoResult result = run_demo(config, {"bf16", "fp8_rowwise"}, options);
    ASSERT_EQ(result.runs.size(), 2u);
    EXPECT_GT(result.bigram_loss, 0);
  }
  EXPECT_THAT(progress.str(),
              ::testing::ContainsRegex("step 6/6  bf16 [0-9.]+  fp8_rowwise [0-9.]+  took "));
  const std::string page = folder.read("demo/report.html");
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(page, HasSubstr("byte-bigram table"));
  EXPECT_THAT(page, HasSubstr("a&lt;b&gt;.txt"));
  EXPECT_EQ(page.find("a<b>"), std::string::npos);
  EXPECT_THAT(page, HasSubstr("fp8_rowwise"));
  EXPECT_THAT(page, HasSubstr("Error of the products"));  // a demo looks at numerics
  for (const char* outside : {"href=", "src=", "nan", "inf,"}) {
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  }
}

}  // namespace
}  // namespace moe8
