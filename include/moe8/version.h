// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#define MOE8_VERSION_MAJOR 0
#define MOE8_VERSION_MINOR 1
#define MOE8_VERSION_PATCH 0

namespace moe8 {

/// "0.1.0"
const char* version();

}  // namespace moe8
