// SPDX-License-Identifier: BSD-3-Clause
// launch_from_environment() on any set of variables.
#pragma once

#include <functional>

#include "moe8/parallel.h"

namespace moe8 {

/// The value of an environment variable, or nullptr.
using LaunchVariables = std::function<const char*(const char* name)>;

Launch launch_from(const LaunchVariables& variable);

}  // namespace moe8
