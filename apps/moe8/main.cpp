// SPDX-License-Identifier: BSD-3-Clause
// The command moe8: a file per subcommand, listed here in the order of the help.
#include "cli.h"
#include "commands.h"
#include "train.h"

int main(int argc, char** argv) {
  CLI::App app("Low-precision training of mixture-of-experts models.", "moe8");
  moe8::add_demo_command(app);
  moe8::add_train_command(app);
  moe8::add_compare_command(app);
  moe8::add_recipes_command(app);
  moe8::add_plan_command(app);
  moe8::add_conformance_command(app);
  moe8::add_doctor_command(app);
  moe8::add_completion_command(app);
  return moe8::run_command_line(app, argc, argv);
}
