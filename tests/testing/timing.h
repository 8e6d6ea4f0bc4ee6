// SPDX-License-Identifier: BSD-3-Clause
// What kernels take, without what surrounds them: memory for results, which is new at every call,
// may cost more than they do.
#pragma once

#include <algorithm>
#include <chrono>
#include <limits>

namespace moe8::testing {

/// `call`, which adds to `seconds` what every call of it takes.
template <typename Call>
auto timed(double& seconds, Call call) {
  return [&seconds, call](const auto&... arguments) {
    const auto start = std::chrono::steady_clock::now();
    call(arguments...);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
}

/// The least that seven calls of run(seconds) leave in seconds, which are 0 before each.
template <typename Run>
double least_of(Run run) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 7; ++i) {
    double seconds = 0;
    run(seconds);
    least = std::min(least, seconds);
  }
  return least;
}

}  // namespace moe8::testing
