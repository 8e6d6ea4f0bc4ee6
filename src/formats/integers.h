// SPDX-License-Identifier: BSD-3-Clause
// Division and multiples of sizes, rounded up. Host and device; no Torch.
#pragma once

#include <type_traits>

#include "formats/host_device.h"

namespace moe8 {

/// n / divisor, rounded up; n >= 0, divisor > 0.
template <typename T>
constexpr MOE8_HD T ceil_div(T n, std::type_identity_t<T> divisor) {
  return (n + divisor - 1) / divisor;
}

/// The smallest multiple of `multiple` that is at least n; n >= 0, multiple > 0.
template <typename T>
constexpr MOE8_HD T round_up(T n, std::type_identity_t<T> multiple) {
  return ceil_div(n, multiple) * multiple;
}

}  // namespace moe8
