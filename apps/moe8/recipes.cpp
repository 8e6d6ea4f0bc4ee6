// SPDX-License-Identifier: BSD-3-Clause
// moe8 recipes: which there are and which to take, the configs of some, or all as JSON.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/nearest.h"
#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"
#include "moe8/config.h"

namespace moe8 {
namespace {

// The figures are docs/benchmarking.md's.
constexpr const char* kAdvice =
    "Which one?\n"
    "  to train faster on a Hopper GPU     fp8_rowwise for experts, rowwise or tensorwise for\n"
    "                                      linears: 0.9 to 1.8 x bf16; the larger, the more\n"
    "  to see what MXFP8 does to a model   mxfp8_rceil, mxfp8_cublas_rceil: emulated on CPUs and on\n"
    "                                      Hopper, where they take 1.0 to 1.4 times as long as bf16\n"
    "  when gradients lose too much        those with wgrad_with_hp or gw_hp in their names\n"
    "  to check a kernel of your own       those with emulated in their names: reference arithmetic\n"
    "On a CPU every recipe emulates: it shows what a format does to the loss, and saves no time.\n"
    "`moe8 train --recipe` with a recipe for experts converts the linears, too, with its companion.\n";

std::string as_json() {
  nlohmann::json list = nlohmann::json::array();
  for (const RecipeInfo& info : all_recipes()) {
    list.push_back({{"name", info.name},
                    {"applies_to", info.applies_to},
                    {"config", to_string(info.config)},
                    {"description", info.description}});
  }
  return list.dump(2) + "\n";
}

std::string as_table() {
  std::vector<std::vector<std::string>> rows{{"recipe", "applies to", "what it does"}};
  for (const RecipeInfo& info : all_recipes()) {
    rows.push_back({info.name, info.applies_to, info.description});
  }
  return text_table(rows, table_style()) + "\n" + kAdvice;
}

std::string configs_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += concat(name, "\n  ", to_string(recipe(name)), "\n");
  return text;
}

std::string wrong_name(const std::string& name) {
  std::vector<std::string> names;
  for (const RecipeInfo& info : all_recipes()) names.push_back(info.name);
  if (std::find(names.begin(), names.end(), name) != names.end()) return "";
  return "there is no recipe '" + name + "'" + did_you_mean(name, names);
}

}  // namespace

void add_recipes_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("recipes", "List the recipes, and say which to take.");
  const auto names = std::make_shared<std::vector<std::string>>();
  const auto json = std::make_shared<bool>(false);
  command->add_option("RECIPE", *names, "Print the configs of these, field by field")
      ->type_name("RECIPE ...")
      ->check(CLI::Validator(wrong_name, ""));
  command->add_flag("--json", *json, "Print all with their configs as JSON");
  command->footer(examples("moe8 recipes\nmoe8 recipes fp8_rowwise rowwise\nmoe8 recipes --json"));
  command->callback([names, json] {
    std::cout << (*json ? as_json() : names->empty() ? as_table() : configs_of(*names));
  });
}

}  // namespace moe8
