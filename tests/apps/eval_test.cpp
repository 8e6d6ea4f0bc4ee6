// SPDX-License-Identifier: BSD-3-Clause
// moe8 eval and moe8 generate, as they are run: on a run and on a published model.
#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/run_command.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;
using Words = std::vector<std::string>;

std::string published(const std::string& family) {
  return std::string(MOE8_MODEL_CASES) + "/" + family;
}

size_t lines_in(const std::string& text) {
  return static_cast<size_t>(std::ranges::count(text, '\n'));
}

class EvalCommand : public ::testing::Test {
 protected:
  // A run that is trained once for all tests.
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TemporaryFolder>();
    RunConfig config = tiny_config(*folder_);
    config.data.validation_fraction = 0.2;
    config.training.recipe = "mxfp8_rceil";
    train(config, {});
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::string run() { return *folder_ / "run"; }
  static std::unique_ptr<TemporaryFolder> folder_;
};

std::unique_ptr<TemporaryFolder> EvalCommand::folder_;

// ---- eval -----------------------------------------------------------------------
TEST_F(EvalCommand, RecipesStandInOneTable) {
  const Ran ran =
      run_moe8({"eval", run(), "--recipe", "bf16,mxfp8_rceil,fp8_rowwise", "--most-tokens", "600"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(lines_in(ran.out), 4U) << ran.out;
  EXPECT_THAT(ran.out, StartsWith("model"));
  for (const char* part :
       {"bits/byte", "to the first", "text.txt (validation)", "fp8_rowwise", " ± "}) {
    EXPECT_THAT(ran.out, HasSubstr(part));
  }
}

TEST_F(EvalCommand, JsonHasTheNumbers) {
  const std::string text = *folder_ / "text.txt";
  const Ran ran =
      run_moe8({"eval", run(), run(), "--data", text, text, "--json", "--most-tokens", "601"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  const auto rows = nlohmann::json::parse(ran.out);
  ASSERT_EQ(rows.size(), 6U);  // two models, two texts and both together
  const auto& both = rows[2];
  EXPECT_EQ(both["text"], "all");
  EXPECT_EQ(both["recipe"], "mxfp8_rceil");
  EXPECT_EQ(both["tokens"], 1200);
  EXPECT_DOUBLE_EQ(both["loss"], rows[0]["loss"]);
  EXPECT_NEAR(both["loss"].get<double>() / std::log(2), both["bits_per_byte"], 1e-9);
  EXPECT_NEAR(both["loss_error"].get<double>() * std::sqrt(2), rows[0]["loss_error"], 1e-9);
  EXPECT_NEAR(std::exp(both["loss"].get<double>()), both["perplexity"], 1e-6);
  EXPECT_EQ(rows[5]["difference"], 0);
  EXPECT_LT(both["loss"], 3);
}

TEST_F(EvalCommand, WhatIsWrongIsOneLine) {
  const auto refusal = [](const Words& words) {
    const Ran ran = run_moe8(words);
    EXPECT_EQ(ran.status, 1);
    EXPECT_EQ(lines_in(ran.err), 1U) << ran.err;
    return ran.err;
  };
  EXPECT_THAT(refusal({"eval", *folder_ / "none"}),
              HasSubstr("expected the folder of a run or a checkpoint, with run.toml, or of a "
                        "published model, with config.json, got none"));
  EXPECT_THAT(refusal({"eval", published("mixtral")}), HasSubstr("--data: expected files, as "));
  EXPECT_THAT(refusal({"eval", published("mixtral"), "--data", *folder_ / "text.txt"}),
              HasSubstr("expected tokens, or a tokenizer to make them with"));
  EXPECT_THAT(refusal({"eval", run(), "--data", *folder_ / "missing"}), HasSubstr("missing"));
  EXPECT_THAT(refusal({"eval", run(), "--seq-len", "100"}),
              HasSubstr("expected 1 to max_seq_len = 32, got 100"));
  EXPECT_EQ(run_moe8({"eval", run(), "--recipe", "fp9"}).status, 2);
  EXPECT_EQ(run_moe8({"eval"}).status, 2);
}

// ---- generate -------------------------------------------------------------------
TEST_F(EvalCommand, ARunGoesOnWithBytes) {
  const Words words{"generate", run(), "--prompt", "the cat", "--max-tokens", "12"};
  const Ran ran = run_moe8(words);
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(ran.out.size(), 13U);
  EXPECT_THAT(ran.err, MatchesRegex("12 tokens after 7, [0-9.]+ tokens/s\n"));
  EXPECT_EQ(run_moe8(words).out, ran.out);
  const Ran all = run_moe8({"generate", run(), "--prompt-file", *folder_ / "run/result.json"});
  EXPECT_EQ(all.status, 1);
  EXPECT_THAT(all.err, HasSubstr("prompt: expected 1 to 31 tokens, one fewer than max_seq_len"));
  const Ran full = run_moe8({"generate", run(), "--prompt", "the cat", "--max-tokens", "100",
                             "--temperature", "1", "--seed", "3"});
  EXPECT_EQ(full.out.size(), 26U);
  EXPECT_THAT(full.err, HasSubstr("Stopped at max_seq_len = 32 positions."));
}

// As transformers' generate gave them: tests/models/compare_transformers.py compares all families.
TEST_F(EvalCommand, APublishedModelGoesOnWithTokens) {
  for (const char* family : {"gpt_oss", "deepseek_v3"}) {
    const Words words{"generate", published(family), "--prompt-tokens", "3,1,4,1,5", "--max-tokens",
                      "40",       "--ignore-end"};
    const Ran ran = run_moe8(words);
    ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(std::ranges::count(ran.out, ' '), 39) << family;
    Words slow = words;
    slow.emplace_back("--no-cache");
    EXPECT_EQ(run_moe8(slow).out, ran.out) << family;
  }
}

TEST_F(EvalCommand, PromptsThatAreNone) {
  const Ran none = run_moe8({"generate", run(), "--prompt", ""});
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("--prompt: expected text to go on with, got none"));
  const Ran text = run_moe8({"generate", published("olmoe"), "--prompt", "a"});
  EXPECT_THAT(text.err, HasSubstr("--tokenizer: expected a tokenizer, as "));
  const Ran token = run_moe8({"generate", published("olmoe"), "--prompt-tokens", "48"});
  EXPECT_THAT(token.err, HasSubstr("expected tokens below vocab_size = 48, got 48"));
  EXPECT_EQ(run_moe8({"generate", run()}).status, 2);
}

}  // namespace
}  // namespace moe8::testing
