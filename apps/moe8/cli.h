// SPDX-License-Identifier: BSD-3-Clause
// From a command line to an exit status. No subcommand is known here.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace moe8 {

enum ExitStatus { kOk = 0, kFailed = 1, kUsage = 2 };

/// Parses and runs. An exception of a subcommand becomes one line on standard error and kFailed, a
/// wrong command line one line and kUsage.
int run_command_line(CLI::App& app, int argc, char** argv);

/// Ends a subcommand with kFailed when what went wrong is printed already.
[[noreturn]] void end_as_failed();

/// The end of a help text: "Example:" and the lines, indented.
std::string examples(const std::string& lines);

}  // namespace moe8
