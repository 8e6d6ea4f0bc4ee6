// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>
#include <vector>

namespace moe8::native {

/// What this thread has been warned of since the last call.
std::vector<std::string> take_warnings();

}  // namespace moe8::native
