// SPDX-License-Identifier: BSD-3-Clause
// The files of configs/: each is valid, its recipe fits its model, and it builds as many parameters
// as its comment says.
#include <filesystem>
#include <fstream>
#include <sstream>

#include "testing/compare.h"
#include "train/config/run_config.h"
#include "train/plan/memory_plan.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;

std::string text_of(const std::string& name) {
  std::ifstream in(MOE8_CONFIGS "/" + name);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TransformerConfig model_of(const std::string& name) {
  return load_run_config(MOE8_CONFIGS "/" + name).model;
}

TEST(Configs, AreValidAndTheirRecipesFit) {
  int count = 0;
  for (const auto& file : std::filesystem::directory_iterator(MOE8_CONFIGS)) {
    const RunConfig config = load_run_config(file.path());
    const bool converts = config.training.recipe != "bf16" || !config.convert.empty();
    EXPECT_NE(plan_conversion(config).converted().empty(), converts) << file.path();
    ++count;
  }
  EXPECT_GE(count, 6);
}

struct Published {
  const char* file;
  int64_t parameters;
  const char* comment;
};

// Of published models, which are exact: families_test.cpp reads their own config.json.
TEST(Configs, BuildAsManyParametersAsTheirCommentsSay) {
  for (const Published& model : {Published{"qwen3_30b_a3b.toml", 30'532'122'624, "30,532,122,624"},
                                 Published{"deepseek_v3.toml", 671'026'404'352, "671,026,404,352"},
                                 Published{"gpt_oss_20b.toml", 20'914'757'184, "20,914,757,184"}}) {
    EXPECT_EQ(count_parameters(model_of(model.file)).total, model.parameters) << model.file;
    EXPECT_THAT(text_of(model.file), HasSubstr(model.comment)) << model.file;
  }
  EXPECT_NEAR(double(count_parameters(model_of("20m.toml")).total), 20e6, 0.5e6);
  EXPECT_NEAR(double(count_parameters(model_of("300m.toml")).total), 300e6, 5e6);
}

}  // namespace
}  // namespace moe8
