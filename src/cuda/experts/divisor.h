// SPDX-License-Identifier: BSD-3-Clause
// Division by a number that only the host knows beforehand, as a multiplication. No Torch.
#pragma once

#include <cstdint>

#include "formats/host_device.h"

namespace moe8::cuda {

/// n / d for 0 <= n < 2^31 and 1 <= d < 2^31.
struct Divisor {
  uint32_t multiplier;
  uint32_t shift;

  /// The factor 2^32 * 2^shift / d, rounded up, with the least 2^shift >= d: exact for these n. It
  /// has 33 bits; `multiplier` holds all but the top one, which is the n that quotient() adds.
  static Divisor of(int64_t d) {
    uint32_t shift = 0;
    while (int64_t{1} << shift < d) ++shift;
    const uint64_t above = ((uint64_t{1} << shift) - static_cast<uint64_t>(d)) << 32;
    return {static_cast<uint32_t>(above / static_cast<uint64_t>(d) + 1), shift};
  }

  MOE8_HD int32_t quotient(int32_t n) const {
    const uint32_t u = static_cast<uint32_t>(n);
    const uint32_t high = static_cast<uint32_t>((uint64_t{multiplier} * u) >> 32);
    return static_cast<int32_t>((high + u) >> shift);
  }
};

}  // namespace moe8::cuda
