// SPDX-License-Identifier: BSD-3-Clause
// moe8 recipes: every recipe of the library, as a table or as JSON.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "commands.h"
#include "moe8/config.h"

namespace moe8 {
namespace {

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

// The config has a line of its own: beside the rest it would not fit any terminal.
std::string as_table() {
  std::vector<std::vector<std::string>> rows{{"recipe", "applies to", "what it does"}};
  for (const RecipeInfo& info : all_recipes()) {
    rows.push_back({info.name, info.applies_to, info.description});
  }
  std::string text = text_table(rows, table_style()) + "\n";
  for (const RecipeInfo& info : all_recipes()) {
    text += info.name + "\n  " + to_string(info.config) + "\n";
  }
  return text;
}

}  // namespace

void add_recipes_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("recipes", "List the recipes and their configs.");
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON instead of a table");
  command->footer(examples("moe8 recipes\nmoe8 recipes --json"));
  command->callback([json] { std::cout << (*json ? as_json() : as_table()); });
}

}  // namespace moe8
