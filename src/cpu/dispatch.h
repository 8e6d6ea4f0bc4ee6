// SPDX-License-Identifier: BSD-3-Clause
// From run-time formats and types to template arguments.
#pragma once

#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8::cpu {

/// f.template operator()<elem>() for the given format.
template <typename F>
inline void with_elem(ElemDtype elem, F f) {
  using enum ElemDtype;
  switch (elem) {
    case E4M3:
      return f.template operator()<E4M3>();
    case E5M2:
      return f.template operator()<E5M2>();
    case E2M3:
      return f.template operator()<E2M3>();
    case E3M2:
      return f.template operator()<E3M2>();
    case E2M1:
      return f.template operator()<E2M1>();
  }
}

/// f(static_cast<T*>(nullptr)) with T = BFloat16 or float.
template <typename F>
inline void with_type(FloatType type, F f) {
  if (type == FloatType::BF16) return f(static_cast<BFloat16*>(nullptr));
  return f(static_cast<float*>(nullptr));
}

}  // namespace moe8::cpu
