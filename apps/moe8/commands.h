// SPDX-License-Identifier: BSD-3-Clause
// The subcommands but train and demo (train.h). Each function adds one to the command line; its
// work starts in its callback, which throws on failure. Defined in the file of the same name.
#pragma once

#include <CLI/CLI.hpp>

namespace moe8 {

void add_compare_command(CLI::App& app);
void add_completion_command(CLI::App& app);
void add_conformance_command(CLI::App& app);
void add_doctor_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_recipes_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);

}  // namespace moe8
