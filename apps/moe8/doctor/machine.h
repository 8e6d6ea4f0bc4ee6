// SPDX-License-Identifier: BSD-3-Clause
// What the machine says about itself. Everything may be unknown; nothing here fails.
#pragma once

#include <string>
#include <vector>

namespace moe8 {

std::string cpu_model();                  // "unknown" where the system does not say
std::vector<std::string> cpu_features();  // those that matter to moe8 or LibTorch, of this CPU
std::string total_memory();               // "23.5 GiB"
std::string memory_line();                // "23.5 GiB, 20.1 GiB available"
std::string gpu_line();                   // what the NVIDIA driver shows, by its files alone

/// NAME=VALUE of each set environment variable that moe8 or its thread pool reads.
std::vector<std::string> environment_lines();

}  // namespace moe8
