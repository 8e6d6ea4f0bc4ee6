// SPDX-License-Identifier: BSD-3-Clause
#include "run_options.h"

#include <algorithm>
#include <functional>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "train/config/recipe_rules.h"

namespace moe8 {
namespace {

using Overrides = std::vector<std::string>;

/// `load` with the overrides; when it fails with them and not without, they are wrong.
RunConfig blaming_overrides(const Overrides& overrides,
                            const std::function<RunConfig(const Overrides&)>& load) {
  try {
    return load(overrides);
  } catch (const c10::Error& error) {
    if (overrides.empty()) throw;
    load({});
    throw CLI::ValidationError("--set", message_of(error));
  }
}

}  // namespace

CLI::Validator is_recipe() {
  return CLI::Validator(
      [](const std::string& name) -> std::string {
        const std::vector<std::string> names = training_recipes();
        if (std::find(names.begin(), names.end(), name) != names.end()) return "";
        const std::string hint = did_you_mean(name, names);
        return concat("there is no recipe '", name, "'",
                      hint.empty() ? concat(", only ", join(names)) : hint);
      },
      "");
}

CLI::Option* add_recipe_option(CLI::App& command, std::string& recipe, const std::string& help) {
  return command.add_option("--recipe", recipe, help)->type_name("RECIPE")->check(is_recipe());
}

CLI::Option* add_set_option(CLI::App& command, std::vector<std::string>& overrides) {
  return command.add_option("--set", overrides, "Change a key: --set training.steps=100")
      ->type_name("SECTION.KEY=VALUE")
      ->allow_extra_args(false);
}

RunConfig load_with_overrides(const std::string& path, const Overrides& overrides) {
  return blaming_overrides(overrides,
                           [&](const Overrides& used) { return load_run_config(path, used); });
}

RunConfig parse_with_overrides(const std::string& text, const std::string& source,
                               const Overrides& overrides) {
  return blaming_overrides(
      overrides, [&](const Overrides& used) { return parse_run_config(text, source, used); });
}

}  // namespace moe8
