// SPDX-License-Identifier: BSD-3-Clause
// The only way in which the library prints. Level by MOE8_LOG: error, warn (default), info, debug;
// MOE8_LOG=dispatch additionally explains which kernel was chosen and why others were refused.
// log.cpp is built without LibTorch's include path: the wheel ships an fmt of its own that differs
// from the system's.
#pragma once

#include <string>

namespace moe8 {

void log_error(const std::string& message);
void log_warning(const std::string& message);
/// May have several lines; names from files in it must be printable() already.
void log_info(const std::string& message);

/// True when MOE8_LOG contains "dispatch"; ask before building the message, which may have lines.
bool logs_dispatch();
void log_dispatch(const std::string& message);

}  // namespace moe8
