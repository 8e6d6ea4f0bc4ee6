// SPDX-License-Identifier: BSD-3-Clause
// One visitor from several lambdas, for std::visit.
#pragma once

namespace moe8 {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <typename... F>
Overloaded(F...) -> Overloaded<F...>;  // clang 14 does not make its own for aggregates

}  // namespace moe8
