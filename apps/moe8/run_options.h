// SPDX-License-Identifier: BSD-3-Clause
// Options that several subcommands share: the recipe, and changes of a run's config. A wrong value
// on the command line is wrong usage; the same value in a file is a failure that names the file.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "train/config/run_config.h"

namespace moe8 {

/// --recipe RECIPE, of training_recipes().
CLI::Option* add_recipe_option(CLI::App& command, std::string& recipe, const std::string& help);

/// --set SECTION.KEY=VALUE, which may be repeated.
CLI::Option* add_set_option(CLI::App& command, std::vector<std::string>& overrides);

/// A name of training_recipes(); else the nearest is named.
CLI::Validator is_recipe();

/// load_run_config, or parse_run_config where `text` is the config itself. What the overrides alone
/// make wrong is a CLI::ValidationError of --set.
RunConfig load_with_overrides(const std::string& path, const std::vector<std::string>& overrides);
RunConfig parse_with_overrides(const std::string& text, const std::string& source,
                               const std::vector<std::string>& overrides);

}  // namespace moe8
