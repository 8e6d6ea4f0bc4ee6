// SPDX-License-Identifier: BSD-3-Clause
// What the reference kernels share: reading and writing one element of either type.
#pragma once

#include "formats/float_type.h"

namespace moe8::reference {

inline float load(const void* x, FloatType type, int64_t i) {
  return type == FloatType::BF16 ? to_float(static_cast<const BFloat16*>(x)[i])
                                 : static_cast<const float*>(x)[i];
}

inline void store(void* x, FloatType type, int64_t i, float value) {
  if (type == FloatType::BF16) {
    static_cast<BFloat16*>(x)[i] = from_float<BFloat16>(value);
  } else {
    static_cast<float*>(x)[i] = value;
  }
}

}  // namespace moe8::reference
