// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace moe8 {

/// Bytes from one row of FP8 codes to the next: whole 16-byte accesses.
inline int64_t code_pitch(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

}  // namespace moe8
