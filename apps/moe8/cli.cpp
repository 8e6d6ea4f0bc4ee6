// SPDX-License-Identifier: BSD-3-Clause
#include "cli.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <new>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "moe8/version.h"
#include "train/terminal.h"

namespace moe8 {
namespace {

// One line, whatever a file name or a library's message holds.
std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> option_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// ---- wrong usage ------------------------------------------------------------
std::string unexpected(const std::string& word, const CLI::App& command) {
  const std::string name = word.substr(0, word.find('='));
  return concat("unexpected argument '", word, "'",
                name.starts_with("-") ? did_you_mean(name, option_names(command)) : "");
}

std::string no_command(const std::string& word, const CLI::App& app) {
  const std::vector<std::string> names = command_names(app);
  return concat("expected a command (", join(names), "), got '", word, "'",
                did_you_mean(word, names));
}

std::string problem_of(const CLI::App& app, const CLI::Error& error) {
  const auto chosen = app.get_subcommands();
  const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
  if (rest.empty()) return error.what();
  if (!chosen.empty()) return unexpected(rest.front(), *chosen.front());
  return rest.front().starts_with("-") ? unexpected(rest.front(), app)
                                       : no_command(rest.front(), app);
}

std::string usage_error(const CLI::App& app, const CLI::Error& error) {
  const auto chosen = app.get_subcommands();
  const std::string command = chosen.empty() ? "" : chosen.front()->get_name() + " ";
  const std::string problem = one_line(problem_of(app, error));
  const bool is_sentence = problem.ends_with("?") || problem.ends_with(".");
  return concat("moe8: ", problem, is_sentence ? "" : ".", " See: moe8 ", command, "--help\n");
}

// ---- from words to a status -------------------------------------------------
// `moe8` alone and `moe8 help` are `moe8 --help`; `moe8 help train` is `moe8 train --help`.
std::vector<std::string> words_of(int argc, char** argv, const CLI::App& app) {
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  if (words.empty()) return {"--help"};
  if (words.front() != "help") return words;
  words.erase(words.begin());
  if (!words.empty() && !words.front().starts_with("-")) {
    const std::vector<std::string> names = command_names(app);
    if (std::find(names.begin(), names.end(), words.front()) == names.end()) {
      throw CLI::ParseError(no_command(words.front(), app), kUsage);
    }
  }
  words.emplace_back("--help");
  return words;
}

int parse_and_run(CLI::App& app, int argc, char** argv) {
  try {
    std::vector<std::string> words = words_of(argc, argv, app);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::RuntimeError& error) {  // before ParseError, which it is one of
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::cerr << usage_error(app, error);
    return kUsage;
  }
  return kOk;
}

constexpr const char* kFooter =
    "`moe8 help COMMAND` explains a command.\n\n"
    "Environment (all of it: docs/env.md of the sources):\n"
    "  MOE8_LOG=dispatch    print the kernel of every product, and why others were not taken\n"
    "  MOE8_CPU_ISA, MOE8_CPU_GEMM, MOE8_WEIGHT_CACHE   choose among ways to the same result\n"
    "  OMP_NUM_THREADS      threads, of quantizers and of LibTorch\n"
    "Begin with docs/tutorial.md; docs/benchmarking.md says which recipe is fast where.\n\n"
    "Exit status: 0 ok, 1 failed, 2 wrong usage, 128 + n stopped by signal n.\n";

}  // namespace

int run_command_line(CLI::App& app, int argc, char** argv) {
  app.set_version_flag("--version", std::string("moe8 ") + version());
  app.require_subcommand(1);
  app.footer(kFooter + examples("moe8 recipes\nmoe8 COMMAND --help"));
  try {
    const int status = parse_and_run(app, argc, argv);
    MOE8_CHECK(std::cout.flush(), "moe8", "standard output", "cannot be written to");
    return status;
  } catch (const std::bad_alloc&) {
    std::cerr << "moe8: out of memory\n";
  } catch (const std::exception& error) {
    std::cerr << "moe8: " << one_line(message_of(error)) << '\n';
  } catch (...) {
    std::cerr << "moe8: failed for an unknown reason\n";
  }
  return kFailed;
}

void end_as_failed() {
  throw CLI::RuntimeError(kFailed);
}

TextTable table_style(const std::string& indent) {
  return {.indent = indent, .columns = table_columns(STDOUT_FILENO)};
}

std::string examples(const std::string& lines) {
  std::string text = "Example:\n  ";
  for (const char c : lines) text += c == '\n' ? std::string("\n  ") : std::string(1, c);
  return text;
}

}  // namespace moe8
