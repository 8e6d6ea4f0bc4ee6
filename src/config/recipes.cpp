// SPDX-License-Identifier: BSD-3-Clause
// Recipes by name and by enumerator. The rows themselves are in recipes.h.
#include "config/recipes.h"

#include <string>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "config/fields.h"

namespace moe8 {
namespace {

template <typename C, typename Recipe>
C config_of(Recipe recipe) {
  for (const auto& row : EnumNames<Recipe>::list) {
    if (row.value == recipe) return row.config;
  }
  fail(Fields<C>::type, "recipe", "expected one of " + choices<Recipe>());
}

template <typename Recipe>
void add_recipes(std::vector<RecipeInfo>& list) {
  for (const auto& row : EnumNames<Recipe>::list) {
    list.push_back({.name = std::string(row.name),
                    .applies_to = is_grouped(row.config) ? "experts" : "linear",
                    .description = std::string(row.description),
                    .config = row.config});
  }
}

}  // namespace

FP8GroupedMMConfig FP8GroupedMMConfig::from_recipe(FP8GroupedMMRecipe recipe) {
  return config_of<FP8GroupedMMConfig>(recipe);
}

MXFP8GroupedMMConfig MXFP8GroupedMMConfig::from_recipe(MXFP8GroupedMMRecipe recipe) {
  return config_of<MXFP8GroupedMMConfig>(recipe);
}

MXLinearConfig MXLinearConfig::from_recipe_name(MXLinearRecipeName recipe) {
  return config_of<MXLinearConfig>(recipe);
}

MXLinearConfig MXLinearConfig::from_recipe_name(std::string_view recipe) {
  return from_recipe_name(parse<MXLinearRecipeName>(recipe));
}

Float8LinearConfig Float8LinearConfig::from_recipe_name(Float8LinearRecipeName recipe) {
  return config_of<Float8LinearConfig>(recipe);
}

Float8LinearConfig Float8LinearConfig::from_recipe_name(std::string_view recipe) {
  return from_recipe_name(parse<Float8LinearRecipeName>(recipe));
}

const std::vector<RecipeInfo>& all_recipes() {
  static const std::vector<RecipeInfo> recipes = [] {
    std::vector<RecipeInfo> list;  // those of experts first
    add_recipes<FP8GroupedMMRecipe>(list);
    add_recipes<MXFP8GroupedMMRecipe>(list);
    add_recipes<MXLinearRecipeName>(list);
    add_recipes<Float8LinearRecipeName>(list);
    return list;
  }();
  return recipes;
}

Config recipe(std::string_view name) {
  std::vector<std::string> names;
  for (const RecipeInfo& info : all_recipes()) {
    if (info.name == name) return info.config;
    names.push_back(info.name);
  }
  fail("recipe", "name",
       concat("expected one of ", join(names), ", got '", name, "'", did_you_mean(name, names)));
}

}  // namespace moe8
