// SPDX-License-Identifier: BSD-3-Clause
// Configs as values: recipes, strings, fields, checks.
#include "moe8/config.h"

#include <set>
#include <unordered_set>

#include "autograd/training_formats.h"
#include "base/nearest.h"
#include "moe8/quantize_model.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

TEST(Recipes, EveryNameLooksUpItsConfigAndIsValid) {
  std::set<std::string> names;
  for (const RecipeInfo& info : all_recipes()) {
    EXPECT_TRUE(names.insert(info.name).second) << "twice: " << info.name;
    EXPECT_EQ(recipe(info.name), info.config);
    EXPECT_EQ(info.applies_to, is_grouped(info.config) ? "experts" : "linear");
    validate(info.config);
  }
  EXPECT_EQ(names.size(), 14u);
}

TEST(Recipes, AnUnknownNameListsAll) {
  EXPECT_THAT(error_of([] { recipe("mxfp8"); }),
              AllOf(HasSubstr("got 'mxfp8'"), HasSubstr("mxfp8_floor_wgrad_with_hp"),
                    HasSubstr("tensorwise")));
  EXPECT_THAT(error_of([] { MXLinearConfig::from_recipe_name("rowwise"); }),
              AllOf(HasSubstr("got 'rowwise'"), HasSubstr("mxfp8_cublas_rceil")));
}

TEST(Recipes, FieldsOfTorchaosRecipes) {
  const auto hp =
      MXFP8GroupedMMConfig::from_recipe(MXFP8GroupedMMRecipe::MXFP8_RCEIL_WGRAD_WITH_HP);
  EXPECT_EQ(hp, (MXFP8GroupedMMConfig{KernelPreference::AUTO, at::kBFloat16, true,
                                      ScaleCalculationMode::RCEIL}));
  EXPECT_EQ(MXLinearConfig::from_recipe_name("mxfp8_emulated"), MXLinearConfig{});
  EXPECT_EQ(MXLinearConfig{}.scale_calculation_mode, ScaleCalculationMode::FLOOR);
  EXPECT_EQ(Float8LinearConfig::from_recipe_name("tensorwise"), Float8LinearConfig{});
  EXPECT_TRUE(Float8LinearConfig::from_recipe_name("rowwise").round_scales_to_power_of_2);
}

TEST(Config, OneLineOfText) {
  EXPECT_EQ(to_string(recipe("mxfp8_rceil")),
            "MXFP8GroupedMMConfig(kernel_preference=auto, out_dtype=bfloat16, wgrad_with_hp=false, "
            "scale_calculation_mode=rceil)");
}

TEST(Config, FieldsAreSetByName) {
  Config config = recipe("mxfp8_rceil");
  set_field(config, "scale_calculation_mode", "floor");
  set_field(config, "wgrad_with_hp", "true");
  EXPECT_EQ(config, recipe("mxfp8_floor_wgrad_with_hp"));
  Config linear = recipe("mxfp8_emulated");
  set_field(linear, "elem_dtype_grad_output_override", "e5m2");
  EXPECT_EQ(std::get<MXLinearConfig>(linear).elem_dtype_grad_output_override, ElemDtype::E5M2);
  set_field(linear, "elem_dtype_grad_output_override", "none");
  EXPECT_EQ(linear, recipe("mxfp8_emulated"));
  Config float8 = recipe("tensorwise");
  set_field(float8, "cast_config_input", "axiswise:float8_e4m3fn");
  EXPECT_EQ(std::get<Float8LinearConfig>(float8).cast_config_input.scaling_granularity,
            ScalingGranularity::AXISWISE);
}

TEST(Config, FieldsThatMustAgreeCanBeSetInTurn) {
  Config config = recipe("tensorwise");
  set_field(config, "cast_config_input", "disabled");
  EXPECT_THAT(error_of([&] { validate(config); }), HasSubstr("both disabled"));
  set_field(config, "cast_config_weight", "disabled");
  set_field(config, "cast_config_grad_output", "disabled");
  validate(config);
  EXPECT_THAT(error_of([&] { set_field(config, "cast_config_weight", "axiswise:e2m1"); }),
              HasSubstr("cast_config_weight"));
}

TEST(Config, WrongFieldsAndValuesAreToldInWords) {
  Config config = recipe("mxfp8_rceil");
  EXPECT_THAT(
      error_of([&] { set_field(config, "block", "32"); }),
      AllOf(HasSubstr("block: there is no such field"), HasSubstr("scale_calculation_mode")));
  EXPECT_THAT(error_of([&] { set_field(config, "scale_calculation_mode", "up"); }),
              HasSubstr("expected one of floor, rceil, ceil, even, got 'up'"));
  EXPECT_THAT(error_of([&] { set_field(config, "out_dtype", "float16"); }),
              HasSubstr("bfloat16 or float32"));
  Config linear = recipe("mxfp8_emulated");
  EXPECT_THAT(error_of([&] { set_field(linear, "block_size", "16"); }),
              HasSubstr("block_size: expected 32"));
  EXPECT_THAT(error_of([&] { set_field(linear, "block_size", "32x"); }),
              HasSubstr("a whole number"));
  EXPECT_THAT(error_of([] {
                MXFP8GroupedMMConfig{.scale_calculation_mode = static_cast<ScaleCalculationMode>(9)}
                    .validate();
              }),
              HasSubstr("scale_calculation_mode: expected one of floor"));
  EXPECT_THAT(error_of([] { FP8GroupedMMConfig{.out_dtype = at::kHalf}.validate(); }),
              HasSubstr("out_dtype"));
}

TEST(Config, Float8OperandsOfAGemmMustMatch) {
  Float8LinearConfig config;
  config.cast_config_input_for_grad_weight = CastConfig{.scaling_type = ScalingType::DISABLED};
  EXPECT_THAT(
      error_of([&] { config.validate(); }),
      HasSubstr("gemm_config_grad_weight: expected both operands quantized or both disabled"));
  config = {};
  config.cast_config_weight.target_dtype = ElemDtype::E2M1;
  EXPECT_THAT(error_of([&] { config.validate(); }), HasSubstr("cast_config_weight"));
}

// ---- what a Float8LinearConfig leaves open ----------------------------------
TEST(Config, AnUnsetTargetDtypeIsThatOfItsTensor) {
  Float8LinearConfig config{.cast_config_grad_output = CastConfig{}};
  const std::string text = to_string(Config(config));
  EXPECT_THAT(text, AllOf(HasSubstr("cast_config_input=tensorwise:float8_e4m3fn"),
                          HasSubstr("cast_config_weight=tensorwise:float8_e4m3fn"),
                          HasSubstr("cast_config_grad_output=tensorwise:float8_e5m2")));
  const TrainingFormats formats = training_formats(config);
  EXPECT_EQ(std::get<Float8Format>(formats.out.left).elem, ElemDtype::E4M3);
  EXPECT_EQ(std::get<Float8Format>(formats.out.right).elem, ElemDtype::E4M3);
  EXPECT_EQ(std::get<Float8Format>(formats.grad_input.left).elem, ElemDtype::E5M2);
  EXPECT_EQ(std::get<Float8Format>(formats.grad_weight.left).elem, ElemDtype::E5M2);
}

TEST(Config, WhatIsNotSetEqualsWhatItStandsFor) {
  Float8LinearConfig written{.cast_config_grad_output = {.target_dtype = ElemDtype::E5M2}};
  written.cast_config_input.target_dtype = ElemDtype::E4M3;
  written.cast_config_input_for_grad_weight = CastConfig{};
  EXPECT_EQ(written, Float8LinearConfig{});
  EXPECT_EQ(std::hash<Config>{}(written), std::hash<Config>{}(Float8LinearConfig{}));
  written.cast_config_grad_output.target_dtype = ElemDtype::E4M3;
  EXPECT_NE(written, Float8LinearConfig{});
  Config read = recipe("rowwise");
  for (const char* field : {"cast_config_input", "cast_config_weight", "cast_config_grad_output"}) {
    set_field(read, field, "tensorwise");
  }
  set_field(read, "round_scales_to_power_of_2", "false");
  EXPECT_EQ(read, recipe("tensorwise"));
}

TEST(Config, ATensorHasOneDtypeInBothItsProducts) {
  constexpr CastConfig kE4M3{.target_dtype = ElemDtype::E4M3},
      kE5M2{.target_dtype = ElemDtype::E5M2};
  const auto error = [](const Float8LinearConfig& config) {
    return error_of([&] { config.validate(); });
  };
  EXPECT_THAT(error({.cast_config_input_for_grad_weight = kE5M2}),
              HasSubstr("[Float8LinearConfig] cast_config_input_for_grad_weight: expected "
                        "float8_e4m3fn as cast_config_input has it, got float8_e5m2"));
  EXPECT_THAT(error({.cast_config_weight = kE5M2, .cast_config_weight_for_grad_input = kE4M3}),
              HasSubstr("cast_config_weight_for_grad_input: expected float8_e5m2"));
  EXPECT_THAT(error({.cast_config_grad_output_for_grad_weight = kE4M3}),
              HasSubstr("cast_config_grad_output_for_grad_weight: expected float8_e5m2"));
  Float8LinearConfig of_both{.cast_config_input = kE5M2};
  of_both.validate();  // the other cast of the input follows
  for (const RecipeInfo& info : all_recipes()) validate(info.config);  // disabled casts have none
}

// ---- keys -------------------------------------------------------------------
TEST(FqnToConfig, AConfigCanBeARecipesName) {
  const FqnToConfig keys{{"experts", "mxfp8_rceil"},
                         {"re:.*attention.*", std::string("rowwise")},
                         {"output", std::nullopt},
                         {"gate", MXLinearConfig{}},
                         {"norm", std::optional<Config>{}}};
  EXPECT_EQ(keys[0].second, recipe("mxfp8_rceil"));
  EXPECT_EQ(keys[1].second, recipe("rowwise"));
  EXPECT_FALSE(keys[2].second.has_value());
  EXPECT_EQ(keys[3].second, Config(MXLinearConfig{}));
  EXPECT_FALSE(keys[4].second.has_value());
  EXPECT_THAT(error_of([] {
                FqnToConfig{{"experts", "mxfp9"}};
              }),
              AllOf(HasSubstr("mxfp8_rceil"), HasSubstr("got 'mxfp9'")));
}

TEST(Config, EqualConfigsHashAlike) {
  std::unordered_set<Config> seen;
  for (const RecipeInfo& info : all_recipes()) seen.insert(info.config);
  std::set<std::string> texts;
  for (const RecipeInfo& info : all_recipes()) texts.insert(to_string(info.config));
  EXPECT_EQ(seen.size(), texts.size());
}

TEST(Nearest, RanksByEdits) {
  EXPECT_EQ(nearest("expert.w1", {"output", "experts.w1", "experts.w2"}, 2),
            (std::vector<std::string>{"experts.w1", "experts.w2"}));
  EXPECT_TRUE(nearest("x", {}).empty());
}

}  // namespace
}  // namespace moe8
