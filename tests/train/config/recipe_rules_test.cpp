// SPDX-License-Identifier: BSD-3-Clause
// What `--recipe NAME` converts: the table of recipes and what it does to a model.
#include "train/config/recipe_rules.h"

#include "moe8/transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

TEST(RecipeRules, EveryRecipeHasRulesOfItsKind) {
  for (const RecipeInfo& info : all_recipes()) {
    const FqnToConfig keys = to_fqn_config(recipe_rules(info.name));
    EXPECT_EQ(keys.front().second, info.config) << info.name;
    ASSERT_EQ(keys.size(), info.applies_to == "experts" ? 2u : 1u) << info.name;
    EXPECT_FALSE(is_grouped(*keys.back().second)) << info.name;
  }
  EXPECT_TRUE(recipe_rules("bf16").empty());
}

TEST(RecipeRules, LinearsBesideExpertsHaveTheSameScaleRule) {
  for (const char* name : {"mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp", "mxfp8_emulated_rceil",
                           "mxfp8_floor", "mxfp8_floor_wgrad_with_hp"}) {
    const FqnToConfig keys = to_fqn_config(recipe_rules(name));
    EXPECT_EQ(std::get<MXFP8GroupedMMConfig>(*keys[0].second).scale_calculation_mode,
              std::get<MXLinearConfig>(*keys[1].second).scale_calculation_mode)
        << name;
  }
}

TEST(RecipeRules, UnknownNamesListAll) {
  EXPECT_THAT(
      error_of([] { recipe_rules("fp8"); }),
      ::testing::AllOf(HasSubstr("[recipe] name: expected one of bf16, "), HasSubstr("got 'fp8'")));
}

TEST(RecipeRules, ConvertExpertsAndLinearsButNeverGateEmbeddingOrOutput) {
  TransformerConfig config;
  config.dim = 32;
  config.n_layers = 2;
  config.hidden_dim = config.dense_hidden_dim = 32;
  for (const char* name : {"mxfp8_rceil", "fp8_rowwise", "mxfp8_cublas"}) {
    Transformer model(config);
    const ConversionReport report = quantize_(*model, to_fqn_config(recipe_rules(name)));
    const bool experts_too = is_grouped(recipe(name));
    for (const ConversionRow& row : report.rows) {
      const bool experts = row.fqn.find(".experts.") != std::string::npos;
      const bool linear = row.fqn.find("attention.w") != std::string::npos ||
                          row.fqn.find("feed_forward.") != std::string::npos ||
                          row.fqn.find("shared_experts.") != std::string::npos;
      EXPECT_EQ(row.config.has_value(), linear || (experts && experts_too))
          << name << " " << row.fqn;
    }
  }
}

}  // namespace
}  // namespace moe8
