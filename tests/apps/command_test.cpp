// SPDX-License-Identifier: BSD-3-Clause
// The command line itself, recipes and doctor: exit statuses and what is printed.
#include <c10/util/StringUtil.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "apps/run_command.h"
#include "moe8/config.h"
#include "moe8/version.h"
#include "testing/folder.h"

namespace moe8::testing {
namespace {

using ::testing::HasSubstr;

void expect_usage_error(const std::vector<std::string>& arguments, const std::string& message) {
  const Ran ran = run_moe8(arguments);
  EXPECT_EQ(ran.status, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_THAT(ran.err, HasSubstr(message));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
}

TEST(Command, HelpListsTheCommands) {
  const Ran ran = run_moe8({"--help"});
  EXPECT_EQ(ran.status, 0);
  EXPECT_EQ(ran.err, "");
  for (const char* name : {"demo", "train", "tokenize", "eval", "generate", "export", "compare",
                           "recipes", "plan", "conformance", "doctor", "completion"}) {
    EXPECT_THAT(ran.out, HasSubstr(name));
  }
}

TEST(Command, EveryCommandHasHelpWithAnExample) {
  for (const std::string name : {"compare", "completion", "conformance", "demo", "doctor", "export",
                                 "plan", "recipes", "tokenize", "train"}) {
    const Ran ran = run_moe8({name, "--help"});
    EXPECT_EQ(ran.status, 0) << name;
    EXPECT_THAT(ran.out, HasSubstr("Example:")) << name;
    EXPECT_THAT(ran.out, HasSubstr("moe8 " + name)) << name;
  }
}

TEST(Command, Version) {
  const Ran ran = run_moe8({"--version"});
  EXPECT_EQ(ran.status, 0);
  EXPECT_EQ(ran.out, std::string("moe8 ") + version() + "\n");
}

TEST(Command, WrongUsageIsOneLineAndTwo) {
  expect_usage_error(
      {"xyz"},
      "expected a command (demo, train, tokenize, eval, generate, export, compare, recipes, ");
  expect_usage_error({"conformence"}, "got 'conformence'. Did you mean 'conformance'? See");
  expect_usage_error({"trian", "--config", "x"}, "Did you mean 'train'?");
  expect_usage_error({"help", "trian"}, "Did you mean 'train'?");
  expect_usage_error({"recipes", "--jsn"}, "unexpected argument '--jsn'. Did you mean '--json'?");
  expect_usage_error({"--verson"}, "Did you mean '--version'?");
  expect_usage_error({"doctor", "now"}, "unexpected argument 'now'. See: moe8 doctor --help");
  expect_usage_error({"conformance"}, "DIR is required");
  expect_usage_error({"export", "run", "--to", "x", "--weights", "fp9"}, "fp9");
  expect_usage_error({"export", "run", "--to", "x", "--adapter", "--weights", "plain"},
                     "--adapter");
  expect_usage_error({"conformance", ".", "--device", "tpu"}, "tpu");
  expect_usage_error({"plan", "--model", "x.safetensors"}, "--convert or --recipe is required");
}

TEST(Command, WrongRecipesAndKeysAreWrongUsage) {
  const std::string config = std::string(MOE8_CONFIGS) + "/demo.toml";
  const std::string wrong = "there is no recipe 'mxfp8_rciel'. Did you mean 'mxfp8_rceil'?";
  expect_usage_error({"train", "--config", config, "--recipe", "mxfp8_rciel"}, wrong);
  expect_usage_error({"plan", "--config", config, "--recipe", "mxfp8_rciel"}, wrong);
  expect_usage_error({"demo", "--recipes", "bf16,mxfp8_rciel"}, wrong);
  expect_usage_error({"recipes", "mxfp8_rciel"}, wrong);
  expect_usage_error({"train", "--config", config, "--recipe", "x"}, "'x', only bf16, fp8_rowwise");
  for (const std::string name : {"train", "plan"}) {
    expect_usage_error({name, "--config", config, "--set", "training.stepz=1"},
                       "The nearest: steps");
    expect_usage_error({name, "--config", config, "--set", "training.steps=-1"}, "steps");
  }
  expect_usage_error({"demo", "--set", "training.stepz=1"}, "The nearest: steps");
}

TEST(Command, WrongFilesAreFailures) {
  const testing::TemporaryFolder folder;
  const std::string config = folder.write("wrong.toml", "[training]\nstepz = 1\n");
  const Ran ran = run_moe8({"plan", "--config", config, "--set", "training.steps=1"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("wrong.toml"));
}

TEST(Command, HelpIsPrintedForThoseWhoAsk) {
  const std::string all = run_moe8({"--help"}).out;
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{}, {"help"}, {"help", "--help"}}) {
    const Ran ran = run_moe8(words);
    EXPECT_EQ(ran.status, 0);
    EXPECT_EQ(ran.out, all);
  }
  EXPECT_EQ(run_moe8({"help", "train"}).out, run_moe8({"train", "--help"}).out);
  EXPECT_THAT(all, HasSubstr("MOE8_LOG=dispatch"));
  EXPECT_THAT(all, HasSubstr("docs/tutorial.md"));
}

TEST(Command, OutputThatCannotBeWrittenIsAFailure) {
  const std::string command = c10::str("'", moe8_path(), "' recipes >/dev/full 2>/dev/null");
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

TEST(Recipes, TableNamesEveryRecipeAndSaysWhichToTake) {
  const Ran ran = run_moe8({"recipes"});
  EXPECT_EQ(ran.status, 0);
  for (const RecipeInfo& info : all_recipes()) {
    EXPECT_THAT(ran.out, HasSubstr("\n" + info.name + " "));
    EXPECT_THAT(ran.out, HasSubstr(info.description));
  }
  EXPECT_THAT(ran.out, HasSubstr("Which one?"));
}

TEST(Recipes, NamesShowConfigs) {
  EXPECT_EQ(run_moe8({"recipes", "rowwise", "mxfp8_floor"}).out,
            "rowwise\n  " + to_string(recipe("rowwise")) + "\nmxfp8_floor\n  " +
                to_string(recipe("mxfp8_floor")) + "\n");
}

TEST(Recipes, JsonHoldsEveryRecipeInOrder) {
  const nlohmann::json list = nlohmann::json::parse(run_moe8({"recipes", "--json"}).out);
  ASSERT_EQ(list.size(), all_recipes().size());
  for (size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(list[i]["name"], all_recipes()[i].name);
    EXPECT_EQ(list[i]["applies_to"], all_recipes()[i].applies_to);
    EXPECT_EQ(list[i]["config"], to_string(all_recipes()[i].config));
  }
}

TEST(Doctor, SaysWhatIsThereAndWhatWouldBeUsed) {
  const Ran ran = run_moe8({"doctor"}, {"MOE8_CPU_ISA=portable", "MOE8_CPU_GEMM=float32"});
  EXPECT_EQ(ran.status, 0);
  EXPECT_EQ(ran.err, "");
  EXPECT_THAT(ran.out, HasSubstr(version()));
  EXPECT_THAT(ran.out, HasSubstr(TORCH_VERSION));
  EXPECT_THAT(ran.out, HasSubstr("portable, because MOE8_CPU_ISA asks"));
  EXPECT_THAT(ran.out, HasSubstr("float32, because MOE8_CPU_GEMM says so"));
  EXPECT_THAT(ran.out, HasSubstr("\n  backends  "));
  EXPECT_THAT(ran.out, HasSubstr("GFLOP/s"));
  EXPECT_THAT(ran.out, HasSubstr("MOE8_CPU_ISA=portable"));
}

TEST(Doctor, JsonSaysTheSame) {
  const Ran ran = run_moe8({"doctor", "--json"}, {"MOE8_CPU_GEMM=float32"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  const nlohmann::json json = nlohmann::json::parse(ran.out);
  EXPECT_EQ(json.at("versions").at("moe8"), version());
  EXPECT_THAT(json.at("what moe8 uses").at("products").get<std::string>(),
              HasSubstr("float32, because MOE8_CPU_GEMM says so"));
  EXPECT_EQ(json.at("environment").at("MOE8_CPU_GEMM"), "float32");
  EXPECT_GE(json.at("measured").size(), 6u);
  EXPECT_GT(json.at("measured").at(0).at("value").get<double>(), 0);
  EXPECT_TRUE(json.at("failures").empty());
}

}  // namespace
}  // namespace moe8::testing
