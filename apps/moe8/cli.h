// SPDX-License-Identifier: BSD-3-Clause
// From a command line to an exit status. No subcommand is known here.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/text_table.h"

namespace moe8 {

enum ExitStatus { kOk = 0, kFailed = 1, kUsage = 2 };

/// Parses and runs. An exception of a subcommand becomes one line on standard error and kFailed, a
/// wrong command line one line and kUsage.
int run_command_line(CLI::App& app, int argc, char** argv);

/// Ends a subcommand with kFailed when what went wrong is printed already.
[[noreturn]] void end_as_failed();

/// How tables fit what standard output is: a terminal, or a file or program without a limit.
TextTable table_style(const std::string& indent = "");

/// The end of a help text: "Example:" and the lines, indented.
std::string examples(const std::string& lines);

}  // namespace moe8
