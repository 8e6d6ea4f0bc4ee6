// SPDX-License-Identifier: BSD-3-Clause
// The version of the headers, for the preprocessor, and of the library that is linked.
#pragma once

#define MOE8_VERSION_MAJOR 0
#define MOE8_VERSION_MINOR 1
#define MOE8_VERSION_PATCH 0

namespace moe8 {

/// The version of the linked library, "0.1.0"; it may be newer than the macros above.
const char* version();

}  // namespace moe8
