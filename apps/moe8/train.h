// SPDX-License-Identifier: BSD-3-Clause
// `moe8 train` and `moe8 demo`.
#pragma once

#include <CLI/CLI.hpp>

namespace moe8 {

void add_train_command(CLI::App& app);
void add_demo_command(CLI::App& app);

}  // namespace moe8
