// SPDX-License-Identifier: BSD-3-Clause
// Stands in for LibTorch's header where moe8 is built without LibTorch: dtypes that configs name.
#pragma once

#include <ostream>

namespace c10 {

enum class ScalarType { Float, BFloat16 };

inline const char* toString(ScalarType dtype) {
  return dtype == ScalarType::Float ? "Float" : "BFloat16";
}

inline std::ostream& operator<<(std::ostream& out, ScalarType dtype) {
  return out << toString(dtype);
}

}  // namespace c10

namespace at {

using c10::ScalarType;
inline constexpr ScalarType kFloat = ScalarType::Float;
inline constexpr ScalarType kBFloat16 = ScalarType::BFloat16;

}  // namespace at
