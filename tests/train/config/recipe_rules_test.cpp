// SPDX-License-Identifier: BSD-3-Clause
// What `--recipe NAME` converts: the table of recipes and what it does to a model.
#include "train/config/recipe_rules.h"

#include <algorithm>

#include "moe8/transformer.h"
#include "testing/compare.h"
#include "train/config/run_config.h"

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

TEST(RecipeRules, SmallLinearsMayStayAsTheyAre) {
  RunConfig config;
  config.model.dim = 1024, config.model.n_heads = 16, config.model.n_kv_heads = 4;
  config.model.n_layers = 2, config.model.n_dense_layers = 1, config.model.dense_hidden_dim = 1024;
  config.model.n_shared_experts = 1, config.model.hidden_dim = 64, config.model.n_experts = 2;
  config.model.vocab_size = 32;
  config.training.recipe = "fp8_rowwise";
  const auto converted = [&] {
    std::vector<std::string> names;
    Transformer model(config.model);
    for (const ConversionRow& row : quantize_(*model, to_fqn_config(config.conversion())).rows) {
      if (row.config && row.fqn.starts_with("layers.1.")) names.push_back(row.fqn.substr(9));
      if (row.config && row.fqn.find("feed_forward") != std::string::npos)
        names.push_back(row.fqn.substr(9));
    }
    std::sort(names.begin(), names.end());
    return names;
  };
  const std::vector<std::string> dense{"feed_forward.w1.weight", "feed_forward.w2.weight",
                                       "feed_forward.w3.weight"};
  std::vector<std::string> all{"attention.wk.weight", "attention.wo.weight", "attention.wq.weight",
                               "attention.wv.weight"};
  all.insert(all.end(), dense.begin(), dense.end());
  for (const char* name : {"moe.experts.w1", "moe.experts.w2", "moe.experts.w3"}) {
    all.emplace_back(name);
  }
  std::vector<std::string> large = all;
  for (const char* name : {"moe.shared_experts.w1.weight", "moe.shared_experts.w2.weight",
                           "moe.shared_experts.w3.weight"}) {
    all.emplace_back(name);
  }
  std::erase(large, "attention.wk.weight");
  std::erase(large, "attention.wv.weight");
  EXPECT_EQ(converted(), all);
  config.training.small_linears = SmallLinears::BF16;
  EXPECT_EQ(converted(), large);
  // No rule is for what the model does not have, which would be an error.
  config.model.n_dense_layers = config.model.n_shared_experts = 0;
  EXPECT_EQ(converted(),
            (std::vector<std::string>{"attention.wo.weight", "attention.wq.weight",
                                      "moe.experts.w1", "moe.experts.w2", "moe.experts.w3"}));
  // Nor is one left for Linears where all are small.
  config.model.dim = 64, config.model.n_heads = config.model.n_kv_heads = 1;
  EXPECT_EQ(converted(),
            (std::vector<std::string>{"moe.experts.w1", "moe.experts.w2", "moe.experts.w3"}));
  config.training.recipe = "bf16";
  EXPECT_TRUE(config.conversion().empty());
  EXPECT_EQ(
      parse_run_config("[training]\nsmall_linears = \"bf16\"", "x.toml").training.small_linears,
      SmallLinears::BF16);
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
