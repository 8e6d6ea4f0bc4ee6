// SPDX-License-Identifier: BSD-3-Clause
// The command moe8: a file per subcommand, listed here in the order of the help.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "cli.h"
#include "commands.h"
#include "train.h"

namespace {

// Whoever starts a program may close its descriptors 0 to 2, as daemons do. The next files that are
// opened would get these numbers, and what is printed would land in them.
bool open_standard_descriptors() {
  constexpr std::array kStandard{STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
  return std::ranges::all_of(kStandard, [](int descriptor) {
    const bool is_open = ::fcntl(descriptor, F_GETFD) >= 0;
    return is_open || ::open("/dev/null", O_RDWR) == descriptor;
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (!open_standard_descriptors()) return moe8::kFailed;
  CLI::App app("Low-precision training of mixture-of-experts models.", "moe8");
  moe8::add_demo_command(app);
  moe8::add_train_command(app);
  moe8::add_tokenize_command(app);
  moe8::add_eval_command(app);
  moe8::add_generate_command(app);
  moe8::add_export_command(app);
  moe8::add_compare_command(app);
  moe8::add_recipes_command(app);
  moe8::add_plan_command(app);
  moe8::add_conformance_command(app);
  moe8::add_doctor_command(app);
  moe8::add_completion_command(app);
  return moe8::run_command_line(app, argc, argv);
}
