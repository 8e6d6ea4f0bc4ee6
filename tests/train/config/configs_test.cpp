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
  int64_t built;
  const char* comment;
};

// Of published models the comment says how many parameters this model has and how many it lacks.
TEST(Configs, BuildAsManyParametersAsTheirCommentsSay) {
  for (const Published& model :
       {Published{"qwen3_30b_a3b_like.toml", 30'532'110'336, "30,532,110,336"},
        Published{"deepseek_v3_like.toml", 674'836'083'712, "674,836,083,712"},
        Published{"gpt_oss_20b_like.toml", 20'907'927'360, "20,907,927,360"}}) {
    EXPECT_EQ(count_parameters(model_of(model.file)).total, model.built) << model.file;
    EXPECT_THAT(text_of(model.file), HasSubstr(model.comment)) << model.file;
  }
  EXPECT_NEAR(double(count_parameters(model_of("20m.toml")).total), 20e6, 0.5e6);
  EXPECT_NEAR(double(count_parameters(model_of("300m.toml")).total), 300e6, 5e6);
}

// The differences that the comments give, added up layer by layer.
TEST(Configs, DifferencesToPublishedModelsAreCounted) {
  EXPECT_EQ(30'532'110'336 + int64_t{48} * (128 + 128), 30'532'122'624);
  EXPECT_EQ(20'907'927'360 + int64_t{24} * (184'320 + 92'160 + 5'120 + 2'880 + 64 + 32),
            20'914'757'184);
  const int64_t dim = 7168, heads = 128;
  const int64_t latent = dim * 1536 + 1536 + 1536 * heads * (128 + 64) + dim * (512 + 64) + 512 +
                         512 * heads * (128 + 128) + heads * 128 * dim;
  const int64_t grouped = 2 * dim * heads * 128 + 2 * dim * 8 * 128;
  EXPECT_EQ(latent, 187'107'328);
  EXPECT_EQ(grouped, 249'561'088);
  EXPECT_EQ(674'836'083'712 + 61 * (latent - grouped) + int64_t{58} * 256, 671'026'419'200);
}

}  // namespace
}  // namespace moe8
