// SPDX-License-Identifier: BSD-3-Clause
// How much memory this process held at most.
#pragma once

#include <cstdint>

namespace moe8 {

/// Gives freed memory back to the system and restarts the measure of peak_memory(). Where the
/// system does not allow a restart, peak_memory() goes on counting from the start of the process.
void restart_peak_memory();

/// The resident memory of the whole process in bytes; 0 where the system does not say.
int64_t resident_memory();

/// The most resident memory of the whole process (VmHWM) in bytes since the last restart,
/// LibTorch's own libraries included.
int64_t peak_memory();

}  // namespace moe8
