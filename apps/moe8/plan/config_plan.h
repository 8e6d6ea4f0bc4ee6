// SPDX-License-Identifier: BSD-3-Clause
// What `moe8 plan --config` prints: parameters, conversion and memory of a model that is not made.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/config/run_config.h"

namespace moe8 {

struct ConfigPlan {
  RunConfig config;                  // with the recipe or rules to show
  std::vector<std::string> recipes;  // whose memory to estimate, besides the config's own
  int64_t world = 1;                 // ranks; of more than one, what each holds and sends
  int64_t machine = 8;               // ranks of one machine
  double network_bytes = 50e9;       // that a rank sends in a second to other machines
};

std::string to_table(const ConfigPlan& plan);
std::string to_json(const ConfigPlan& plan);

}  // namespace moe8
