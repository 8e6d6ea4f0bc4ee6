// SPDX-License-Identifier: BSD-3-Clause
// Run configs: every kind of mistake by its message, overrides, and the way back to TOML.
#include "train/config/run_config.h"

#include "testing/compare.h"
#include "testing/folder.h"
#include "testing/locale.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

std::string message(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return error_of([&] { parse_run_config(text, "a.toml", overrides); });
}

TEST(RunConfig, NumbersAreWrittenAsTheyWereTyped) {
  RunConfig config;
  config.data.validation_fraction = 0.05;
  config.optimizer.min_learning_rate = 1e-5;
  config.optimizer.beta1 = 0.9;
  config.model.rope_theta = 500000;
  config.model.vocab_size = 4000;
  const std::string text = to_toml(config);
  for (const char* line : {"validation_fraction = 0.05\n", "min_learning_rate = 1e-05\n",
                           "beta1 = 0.9\n", "rope_theta = 500000.0\n", "vocab_size = 4000\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_EQ(parse_run_config(text, "a.toml"), config);
  config.optimizer.eps = 0.1 + 0.2;
  config.optimizer.max_grad_norm = 1e-300;
  EXPECT_EQ(parse_run_config(to_toml(config), "a.toml"), config);
}

TEST(RunConfig, TheTextIsTheSameInEveryLocale) {
  RunConfig config;
  config.model.vocab_size = 4000;
  config.optimizer.learning_rate = 0.5;
  const std::string text = to_toml(config);
  const testing::GermanStreams german;
  EXPECT_EQ(to_toml(config), text);
  EXPECT_EQ(parse_run_config(text, "a.toml"), config);
}

TEST(RunConfig, EmptyTextGivesTheDefaults) {
  EXPECT_EQ(parse_run_config("", "a.toml"), RunConfig{});
}

TEST(RunConfig, ReadsEveryType) {
  const RunConfig config = parse_run_config(R"(
[model]
dim = 64
score_function = "softmax"
route_norm = false
route_scale = 2
[data]
files = ["a.txt", "b.txt"]
[optimizer]
learning_rate = 3e-3
[training]
steps = 7
weights = "float32"
recipe = "mxfp8_rceil"
[output]
folder = "runs/x"
)",
                                            "a.toml");
  EXPECT_EQ(config.model.dim, 64);
  EXPECT_EQ(config.model.score_function, ScoreFunction::SOFTMAX);
  EXPECT_FALSE(config.model.route_norm);
  EXPECT_EQ(config.model.route_scale, 2.0);
  EXPECT_EQ(config.data.files, (std::vector<std::string>{"a.txt", "b.txt"}));
  EXPECT_EQ(config.optimizer.learning_rate, 3e-3);
  EXPECT_EQ(config.training.steps, 7);
  EXPECT_EQ(config.training.weights, Weights::FLOAT32);
  EXPECT_EQ(config.training.recipe, "mxfp8_rceil");
  EXPECT_EQ(config.output.folder, "runs/x");
}

TEST(RunConfig, UnknownNamesListTheNearest) {
  EXPECT_THAT(
      message("[training]\nsteps = 5\nbatchsize = 4\n"),
      HasSubstr("[config] batchsize: there is no such key in [training] (a.toml:3). The nearest: "
                "batch_size"));
  EXPECT_THAT(
      message("[trainin]\nsteps = 5\n"),
      HasSubstr("[config] trainin: there is no such section (a.toml:1). The nearest: training"));
  EXPECT_THAT(message("steps = 5\n"),
              HasSubstr("[config] steps: there is no such section (a.toml:1)"));
}

TEST(RunConfig, WrongTypes) {
  EXPECT_EQ(message("[training]\nsteps = \"ten\"\n"),
            "[config] training.steps: expected an integer, got 'ten' (a string) at a.toml:2");
  EXPECT_EQ(message("[training]\nsteps = 1.5\n"),
            "[config] training.steps: expected an integer, got 1.5 (a number) at a.toml:2");
  EXPECT_EQ(
      message("[optimizer]\nlearning_rate = true\n"),
      "[config] optimizer.learning_rate: expected a number, got true (a boolean) at a.toml:2");
  EXPECT_EQ(message("[model]\nroute_norm = 1\n"),
            "[config] model.route_norm: expected true or false, got 1 (an integer) at a.toml:2");
  EXPECT_EQ(
      message("[data]\nfiles = [1]\n"),
      "[config] data.files: expected an array of strings, got 1 (an integer) in it at a.toml:2");
  EXPECT_EQ(message("[output]\nfolder = []\n"),
            "[config] output.folder: expected a string, got an array at a.toml:2");
  EXPECT_EQ(message("training = 5\n"),
            "[config] training: expected a table, got 5 (an integer) at a.toml:1");
  EXPECT_EQ(
      message("[training]\nseed = 2020-01-01\n"),
      "[config] training.seed: expected an integer, got 2020-01-01 (a date or time) at a.toml:2");
}

TEST(RunConfig, WrongChoices) {
  EXPECT_EQ(message("[training]\nweights = \"fp16\"\n"),
            "[config] training.weights: expected master, bf16 or float32, got 'fp16' (a string) "
            "at a.toml:2");
  EXPECT_EQ(message("[model]\nscore_function = \"relu\"\n"),
            "[config] model.score_function: expected softmax or sigmoid, got 'relu' (a string) "
            "at a.toml:2");
  EXPECT_THAT(message("[training]\nrecipe = \"mxfp9\"\n"),
              HasSubstr("[recipe] name: expected one of bf16, fp8_rowwise, mxfp8_rceil"));
}

TEST(RunConfig, OutOfRange) {
  EXPECT_EQ(message("[training]\nsteps = 0\n"),
            "[config] training.steps: expected 1 to 1000000000, got 0 at a.toml:2");
  EXPECT_EQ(message("[optimizer]\nbeta1 = 1.0\n"),
            "[config] optimizer.beta1: expected 0 to 0.999999, got 1 at a.toml:2");
  EXPECT_EQ(message("[optimizer]\nlearning_rate = 0\n"),
            "[config] optimizer.learning_rate: expected more than 0 to 1e+09, got 0 at a.toml:2");
  EXPECT_EQ(message("[optimizer]\nlearning_rate = nan\n"),
            "[config] optimizer.learning_rate: expected more than 0 to 1e+09, got nan at a.toml:2");
  EXPECT_EQ(message("[training]\nseed = -1\n"),
            "[config] training.seed: expected 0 to 9000000000000000000, got -1 at a.toml:2");
}

TEST(RunConfig, WhatDoesNotFitTogether) {
  EXPECT_EQ(message("[training]\nseq_len = 2000\n"),
            "[config] training.seq_len: expected at most model.max_seq_len = 1024, got 2000");
  EXPECT_EQ(message("[optimizer]\nmin_learning_rate = 1.0\n"),
            "[config] optimizer.min_learning_rate: expected at most optimizer.learning_rate = "
            "0.001, got 1");
  EXPECT_EQ(message("[optimizer]\nschedule = \"wsd\"\n"),
            "[config] optimizer.decay_steps: expected the number of the last steps in which the "
            "rate falls, got 0. It goes with schedule = \"wsd\".");
  EXPECT_EQ(message("[optimizer]\ndecay_steps = 5\n"),
            "[config] optimizer.decay_steps: expected none beside schedule = \"cosine\", got 5. It "
            "goes with schedule = \"wsd\".");
  EXPECT_EQ(message("[optimizer]\nkind = \"adam\"\n"),
            "[config] optimizer.kind: expected adamw or muon, got 'adam' (a string) at a.toml:2");
  EXPECT_EQ(message("[model]\nvocab_size = 100\n"),
            "[config] model.vocab_size: expected at least 256 (tokens are bytes), got 100");
  EXPECT_EQ(message("[model]\ntop_k = 20\n"), "[TransformerConfig] top_k: expected 1 to 8, got 20");
  EXPECT_EQ(
      message("[training]\nrecipe = \"custom\"\n"),
      "[config] training.recipe: expected [[convert]] tables beside recipe = \"custom\", got none");
  EXPECT_EQ(
      message("[training]\nrecipe = \"rowwise\"\n[[convert]]\nmatch = \"a\"\nrecipe = \"none\"\n"),
      "[config] training.recipe: expected none beside [[convert]] tables, got 'rowwise'");
}

TEST(RunConfig, BadSyntaxNamesLineAndColumn) {
  EXPECT_THAT(message("[training]\nsteps = = 5\n"),
              HasSubstr("[config] a.toml:2:9: expected valid TOML, got: "));
  EXPECT_THAT(message("[training]\nsteps = 5\nsteps = 6\n"), HasSubstr("[config] a.toml:3:"));
}

TEST(RunConfig, FilesThatCannotBeRead) {
  const testing::TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { load_run_config(folder / "none.toml"); }),
            "[config] file: expected a readable file, got '" + (folder / "none.toml") +
                "', which does not exist");
  EXPECT_EQ(error_of([&] { load_run_config(folder / ""); }),
            "[config] file: expected a readable file, got '" + (folder / "") +
                "', which is not a regular file");
}

TEST(RunConfig, OverridesComeLastAndInOrder) {
  const RunConfig config = parse_run_config(
      "[training]\nsteps = 5\n", "a.toml",
      {"training.steps=6", "training.steps=7", "training.weights=bf16", "optimizer.learning_rate=1",
       "data.files=[\"x\", \"y\"]", "output.folder=runs/a b", "training.recipe=\"rowwise\""});
  EXPECT_EQ(config.training.steps, 7);
  EXPECT_EQ(config.training.weights, Weights::BF16);
  EXPECT_EQ(config.optimizer.learning_rate, 1.0);
  EXPECT_EQ(config.data.files, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(config.output.folder, "runs/a b");
  EXPECT_EQ(config.training.recipe, "rowwise");
}

TEST(RunConfig, OverridesThatAreWrong) {
  EXPECT_EQ(message("", {"steps=6"}), "[config] --set: expected section.key=value, got 'steps=6'");
  EXPECT_EQ(message("", {"training.steps"}),
            "[config] --set: expected section.key=value, got 'training.steps'");
  EXPECT_THAT(
      message("", {"training.stepz=6"}),
      HasSubstr("[config] stepz: there is no such key in [training] (--set training.stepz=6). The "
                "nearest: steps"));
  EXPECT_EQ(message("", {"training.steps=many"}),
            "[config] training.steps: expected an integer, got 'many' (a string) at --set "
            "training.steps=many");
  EXPECT_EQ(
      message("", {"training.steps=5\nseed = 3"}),
      "[config] training.steps: expected an integer, got '5\\x0aseed = 3' (a string) at --set "
      "training.steps=5\\x0aseed = 3");
}

TEST(RunConfig, TextThatTomlCannotHold) {
  EXPECT_EQ(message("", {"output.folder=a\xff"}),
            "[config] output.folder: expected UTF-8, got 'a\xff' at --set output.folder=a\xff");
  EXPECT_THAT(message("", {"data.files=[\"a\xff\"]"}), HasSubstr("data.files: expected UTF-8"));
}

TEST(RunConfig, WrittenBackItIsTheSame) {
  RunConfig config;
  config.model.n_experts = 12;
  config.model.score_function = ScoreFunction::SOFTMAX;
  config.optimizer.learning_rate = 0.1 + 0.2;  // not a short decimal
  config.optimizer.eps = 1e-12;
  config.data.files = {"with \"quotes\" and \\", "tab\t", "\n\nbreaks", "\r\n\x7f\x1b'''"};
  config.training.recipe = "custom";
  config.training.weights = Weights::BF16;
  config.training.seed = 8999999999999999999;
  config.convert = {{"re:.*\\.experts\\.w[123]", "mxfp8_rceil", {{"wgrad_with_hp", "true"}}, ""},
                    {"output.weight", "none", {}, ""}};
  config.optimizer.rates = {{"re:(\n)?.*\\.w1(\"\t)?", 0.5}, {"re:.*\\.w2", 2.0}};
  EXPECT_EQ(parse_run_config(to_toml(config), "run.toml"), config) << to_toml(config);
  EXPECT_EQ(parse_run_config(to_toml(RunConfig{}), "run.toml"), RunConfig{});
}

TEST(RunConfig, DifferencesComeWithBothValues) {
  RunConfig first, second;
  EXPECT_TRUE(differences(first, second).empty());
  second.checkpoint.keep = 7;
  second.data.files = {"a"};
  second.convert = {{"a", "rowwise", {{"x", "1"}}, "file:1"}, {"b", "none", {}, ""}};
  std::vector<std::string> texts;
  for (const SettingDifference& one : differences(first, second)) {
    texts.push_back(one.name + ": " + one.first + " -> " + one.second);
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"data.files: [] -> [ 'a' ]", "checkpoint.keep: 2 -> 7",
                                             "convert: no rules -> 'a' rowwise x=1, 'b' none"}));
}

TEST(RunConfig, ConvertTablesInPlaceOfARecipe) {
  const RunConfig config =
      parse_run_config("[[convert]]\nmatch = \"_default\"\nrecipe = \"rowwise\"\n", "a.toml");
  ASSERT_EQ(config.conversion().size(), 1u);
  EXPECT_EQ(config.conversion()[0].match, "_default");
  EXPECT_THAT(message("[[convert]]\nmatch = \"_default\"\nrecipe = \"rowise\"\n"),
              HasSubstr("[conversion] a.toml:1: [recipe] name: expected one of "));
}

TEST(RunConfig, DeterministicIsAutoOrAFlag) {
  const auto read = [](const char* value) {
    return parse_run_config(std::string("[training]\ndeterministic = ") + value, "x.toml");
  };
  EXPECT_EQ(read("\"auto\"").training.deterministic, Deterministic::AUTO);
  EXPECT_EQ(read("true").training.deterministic, Deterministic::ON);
  EXPECT_EQ(read("false").training.deterministic, Deterministic::OFF);
  for (const char* value : {"\"auto\"", "true", "false"}) {
    EXPECT_EQ(parse_run_config(to_toml(read(value)), "x.toml"), read(value));
  }
  EXPECT_THAT(error_of([&] { read("\"no\""); }),
              HasSubstr("training.deterministic: expected \"auto\", true or false, got "));
  EXPECT_THAT(error_of([&] { read("1"); }), HasSubstr("training.deterministic: expected "));
}

TEST(RunConfig, ActivationCheckpointingIsOneOfThree) {
  RunConfig config;
  for (const Recompute recompute : {Recompute::NONE, Recompute::SELECTIVE, Recompute::FULL}) {
    config.training.activation_checkpointing = recompute;
    EXPECT_EQ(parse_run_config(to_toml(config), "x.toml"), config);
  }
  EXPECT_THAT(error_of([] {
                parse_run_config("[training]\nactivation_checkpointing = \"some\"", "x.toml");
              }),
              HasSubstr("expected none, selective or full, got "));
}

TEST(RunConfig, TensorParallelismHasToDivideWhatItCuts) {
  const auto with = [](const std::string& setting) {
    return message("", {"model.n_kv_heads=4", "parallel.tensor=4", setting});
  };
  EXPECT_EQ(with("training.seq_len=64"), "(no error)");
  EXPECT_THAT(with("model.n_kv_heads=2"),
              HasSubstr("[config] parallel.tensor: expected a divisor of model.n_kv_heads = 2, "
                        "got 4"));
  EXPECT_THAT(with("training.seq_len=66"),
              HasSubstr("expected a divisor of training.seq_len = 66, got 4"));
  EXPECT_THAT(with("model.dense_hidden_dim=72"),
              HasSubstr("expected a divisor of model.dense_hidden_dim / 8 = 9, got 4"));
  EXPECT_THAT(with("model.hidden_dim=72"),
              HasSubstr("expected a divisor of model.hidden_dim x n_shared_experts / 8 = 9"));
  EXPECT_THAT(with("optimizer.kind=muon"),
              HasSubstr("[config] optimizer.kind: expected adamw beside parallel.tensor = 4"));
  EXPECT_THAT(message("", {"parallel.timeout_s=0"}), HasSubstr("parallel.timeout_s: expected "));
}

}  // namespace
}  // namespace moe8
