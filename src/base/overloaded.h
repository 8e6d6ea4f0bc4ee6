// SPDX-License-Identifier: BSD-3-Clause
// One visitor from several lambdas, for std::visit.
#pragma once

namespace moe8 {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};

}  // namespace moe8
