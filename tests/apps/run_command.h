// SPDX-License-Identifier: BSD-3-Clause
// The built command moe8 as a child process.
#pragma once

#include <string>
#include <vector>

namespace moe8::testing {

struct Ran {
  int status = -1;  // exit status; 128 + n after signal n
  std::string out;
  std::string err;
};

std::string moe8_path();

/// @param environment  "NAME=VALUE" on top of this process's.
Ran run_moe8(const std::vector<std::string>& arguments,
             const std::vector<std::string>& environment = {});

}  // namespace moe8::testing
