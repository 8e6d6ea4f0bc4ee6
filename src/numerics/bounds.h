// SPDX-License-Identifier: BSD-3-Clause
// Which values of a report are out of bounds. The bounds themselves are the table in bounds.cpp.
#pragma once

#include <string>
#include <vector>

#include "moe8/numerics.h"

namespace moe8 {

/// How messages name the module of `experts`: "(root)" for the model itself, which has no name.
std::string place_of(const ExpertTokens& experts);

/// Every value of the report that has a bound and leaves it, in the report's order.
std::vector<NumericsWarning> warnings_of(const NumericsReport& report,
                                         const std::vector<NumericsBound>& bounds);

}  // namespace moe8
