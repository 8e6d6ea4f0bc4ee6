// SPDX-License-Identifier: BSD-3-Clause
#include "cli.h"

#include <algorithm>
#include <iostream>
#include <new>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
#include "moe8/version.h"

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

std::string usage_error(const CLI::App& app, const CLI::Error& error) {
  const auto chosen = app.get_subcommands();
  std::string problem = error.what();
  if (chosen.empty()) {
    const std::vector<std::string> rest = app.remaining();
    problem = c10::str("expected a command (", join(command_names(app)), ")",
                       rest.empty() ? "" : ", got '" + rest.front() + "'");
  }
  const std::string name = chosen.empty() ? "" : chosen.front()->get_name() + " ";
  return c10::str("moe8: ", one_line(problem), ". See: moe8 ", name, "--help\n");
}

int parse_and_run(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {  // before ParseError, which it is one of
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::cerr << usage_error(app, error);
    return kUsage;
  }
  return kOk;
}

}  // namespace

int run_command_line(CLI::App& app, int argc, char** argv) {
  app.set_version_flag("--version", std::string("moe8 ") + version());
  app.require_subcommand(1);
  app.footer("Exit status: 0 ok, 1 failed, 2 wrong usage, 128 + n stopped by signal n.\n" +
             examples("moe8 recipes\nmoe8 COMMAND --help"));
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

std::string examples(const std::string& lines) {
  std::string text = "Example:\n  ";
  for (const char c : lines) text += c == '\n' ? std::string("\n  ") : std::string(1, c);
  return text;
}

}  // namespace moe8
